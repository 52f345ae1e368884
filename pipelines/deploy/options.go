// Package deploy puts a version of a service into one of its two colours and waits until it is ready, or says in one
// line why it is not.
//
// It never touches the colour that the live Service selects, and no object that it did not create.
package deploy

import (
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"sort"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/kubernetes"

	"github.com/greenlight-ci/greenlight/pipelines/image"
)

// Sentinels for errors.Is.
var (
	// ErrNotReady is a no: the candidate did not become ready. The message says why.
	ErrNotReady = errors.New("candidate is not ready")
	// ErrForeign is wrapped when an object of the name that is needed exists and is not greenlight's, or has been
	// changed so that it cannot be relied on. It is left as it is.
	ErrForeign = errors.New("object is not managed by greenlight")
	// ErrLive is wrapped when something was asked of the colour that has the traffic which only the other may suffer.
	ErrLive = errors.New("colour is live")
	// ErrInvalid is wrapped by errors about options; nothing has been changed.
	ErrInvalid = errors.New("invalid deploy options")
	// ErrPreflight is wrapped when the cluster cannot take the candidate; nothing has been changed.
	ErrPreflight = errors.New("preflight")
)

// The two slots of a service.
const (
	Blue  = "blue"
	Green = "green"
)

// Names of labels and annotations, and the manager of the fields that a release sets.
const (
	LabelName      = "app.kubernetes.io/name"
	LabelManagedBy = "app.kubernetes.io/managed-by"
	LabelVersion   = "app.kubernetes.io/version"
	LabelService   = "greenlight.dev/service"
	LabelColour    = "greenlight.dev/colour"

	AnnotationImage   = "greenlight.dev/image"
	AnnotationRelease = "greenlight.dev/release"

	// Manager is the value of LabelManagedBy and the field manager of every write.
	Manager = "greenlight"
)

// Options describe one colour of a service. Zero values have the defaults that the comments give.
type Options struct {
	// Client talks to the cluster.
	Client kubernetes.Interface `json:"-"`
	// Log gets a line whenever something changes on the way to ready. Default: none.
	Log io.Writer `json:"-"`

	// Namespace and Service say which service. Service is a DNS label of at most 50 characters.
	Namespace string `json:"namespace"`
	Service   string `json:"service"`
	// Colour is the slot: blue or green, whichever is not live.
	Colour string `json:"colour"`
	// Version is the immutable version, a label value such as v1.4.0-3f2a1c9.
	Version string `json:"version"`
	// Image is the image's reference. It must have a digest.
	Image string `json:"image"`
	// Release is the id of the release. A new id replaces the pods of a leftover of the same version.
	Release string `json:"release"`

	// Replicas is the number of pods. Default 1.
	Replicas int32 `json:"replicas"`
	// Port is the container's HTTP port. Default 8080.
	Port int32 `json:"port"`
	// ServicePort is the port of the live and the preview Service. Default 80.
	ServicePort int32 `json:"servicePort"`
	// ServiceType is the type of the live Service, used when it is created. Default ClusterIP.
	ServiceType corev1.ServiceType `json:"serviceType,omitempty"`
	// ServiceAnnotations are set on the live Service when it is created.
	ServiceAnnotations map[string]string `json:"serviceAnnotations,omitempty"`

	// Env is passed to the container as it is, without expansion of $(NAME).
	Env map[string]string `json:"env,omitempty"`
	// EnvFrom takes single variables from ConfigMaps and Secrets.
	EnvFrom []EnvFrom `json:"envFrom,omitempty"`
	// Mounts are ConfigMaps and Secrets that the container sees as read-only directories.
	Mounts []Mount `json:"mounts,omitempty"`

	// Device is cuda or cpu.
	Device string `json:"device"`
	// GPUResource is the extended resource that each pod takes. Default nvidia.com/gpu with device cuda.
	GPUResource string `json:"gpuResource,omitempty"`
	// GPUs is how many of it each pod takes. Default 1 with device cuda, none with device cpu.
	GPUs int64 `json:"gpus"`
	// Requests and Limits are quantities by resource name, such as cpu: 500m and memory: 2Gi. Default: none.
	Requests map[string]string `json:"requests,omitempty"`
	Limits   map[string]string `json:"limits,omitempty"`

	// Probes are the paths that the kubelet asks.
	Probes Probes `json:"probes"`
	// DrainSeconds is how long a pod that stops goes on answering. Default 5; -1 for none.
	DrainSeconds int `json:"drainSeconds"`
	// GraceSeconds is how long it has in all before it is killed. It must exceed the drain. Default drain + 25.
	GraceSeconds int `json:"graceSeconds"`

	// NodeSelector, Tolerations and RuntimeClass place the pods. Default: none.
	NodeSelector map[string]string   `json:"nodeSelector,omitempty"`
	Tolerations  []corev1.Toleration `json:"tolerations,omitempty"`
	RuntimeClass string              `json:"runtimeClass,omitempty"`
	// PullSecrets name the Secrets that the kubelet pulls with.
	PullSecrets []string `json:"pullSecrets,omitempty"`
	// ServiceAccount is an existing account for the pods. Default: one with the name of the service is made, and no
	// token is mounted either way.
	ServiceAccount string `json:"serviceAccount,omitempty"`
	// RunAsUser is the numeric user. Default: the image's, which must be numeric and not root.
	RunAsUser int64 `json:"runAsUser,omitempty"`
	// TmpSize limits /tmp, the only place that the container can write to. Default 1Gi.
	TmpSize string `json:"tmpSize,omitempty"`
	// MaxUnavailable makes a PodDisruptionBudget that lets a node drain take that many pods at a time. Default 0: no
	// budget.
	MaxUnavailable int32 `json:"maxUnavailable,omitempty"`

	// Timeout is how long the candidate may take to become ready, in nanoseconds in JSON. Default 10 min.
	Timeout time.Duration `json:"timeout"`
	// UnschedulableGrace is how long a pod may find no node before that is taken to be final. It is extended while
	// pods of the same colour are stopping or a cluster autoscaler has said that it adds a node. Default 30 s.
	UnschedulableGrace time.Duration `json:"unschedulableGrace"`
	// ScaleUp says that the cluster adds nodes on demand, so that missing capacity is worth a note in preflight and
	// not a refusal, and unschedulable pods are waited for until Timeout. Default false.
	ScaleUp bool `json:"scaleUp,omitempty"`
}

// EnvFrom is one environment variable from a ConfigMap or a Secret.
type EnvFrom struct {
	Name string `json:"name"`
	// ConfigMap or Secret is the object's name: one of the two.
	ConfigMap string `json:"configMap,omitempty"`
	Secret    string `json:"secret,omitempty"`
	// Key in it.
	Key string `json:"key"`
}

// Mount is a ConfigMap or a Secret as a directory.
type Mount struct {
	// Path is absolute and not below another mount.
	Path string `json:"path"`
	// ConfigMap or Secret is the object's name: one of the two.
	ConfigMap string `json:"configMap,omitempty"`
	Secret    string `json:"secret,omitempty"`
}

// Probes are the paths that the kubelet asks on the HTTP port.
type Probes struct {
	// Startup is asked once a second until it answers 200; only then do the others begin. Default: Readiness.
	Startup string `json:"startup"`
	// StartupSeconds is how long that may take before the kubelet starts the container again. Default 600.
	StartupSeconds int `json:"startupSeconds"`
	// Readiness answers 200 when the service can answer users. Default /ready.
	Readiness string `json:"readiness"`
	// Liveness answers while the process lives. Default /health.
	Liveness string `json:"liveness"`
}

// withDefaults returns o with the documented defaults.
func (o Options) withDefaults() Options {
	set(&o.Replicas, 1)
	set(&o.Port, 8080)
	set(&o.ServicePort, 80)
	set(&o.ServiceType, corev1.ServiceTypeClusterIP)
	if o.Device == "cuda" {
		set(&o.GPUResource, "nvidia.com/gpu")
		set(&o.GPUs, 1)
	}
	set(&o.Probes.Readiness, "/ready")
	set(&o.Probes.Startup, o.Probes.Readiness)
	set(&o.Probes.StartupSeconds, 600)
	set(&o.Probes.Liveness, "/health")
	switch {
	case o.DrainSeconds == 0:
		o.DrainSeconds = 5
	case o.DrainSeconds == -1:
		o.DrainSeconds = 0
	}
	set(&o.GraceSeconds, o.DrainSeconds+25)
	set(&o.TmpSize, "1Gi")
	set(&o.Timeout, 10*time.Minute)
	set(&o.UnschedulableGrace, 30*time.Second)
	if o.Log == nil {
		o.Log = io.Discard
	}
	return o
}

func set[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

var probePath = regexp.MustCompile(`^/[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*$`)

// validate checks what the API server would refuse late, or accept and misunderstand.
func (o Options) validate() error {
	var problems []string
	no := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	if p := checkName(o.Service); p != "" {
		no("service %q: %s", o.Service, p)
	}
	if m := validation.IsDNS1123Label(o.Namespace); len(m) > 0 {
		no("namespace %q: %s", o.Namespace, m[0])
	}
	if o.Colour != Blue && o.Colour != Green {
		no("colour %q is neither blue nor green", o.Colour)
	}
	if m := validation.IsValidLabelValue(o.Version); o.Version == "" || len(m) > 0 {
		no("version %q is not a label value (letters, digits, '-', '_' and '.', at most 63)", o.Version)
	}
	if o.Image == "" {
		no("no image")
	} else if _, err := image.ParsePinned(o.Image); err != nil {
		no("image: %v", err)
	}
	if o.Replicas < 1 {
		no("replicas %d: a candidate has at least one pod", o.Replicas)
	}
	for what, port := range map[string]int32{"port": o.Port, "service port": o.ServicePort} {
		if port < 1 || port > 65535 {
			no("%s %d is not between 1 and 65535", what, port)
		}
	}
	o.validateDevice(no)
	o.validateEnv(no)
	for what, p := range map[string]string{"startup": o.Probes.Startup, "readiness": o.Probes.Readiness, "liveness": o.Probes.Liveness} {
		if !probePath.MatchString(p) {
			no("%s probe %q is not a path like /ready", what, p)
		}
	}
	if o.DrainSeconds < 0 || o.GraceSeconds <= o.DrainSeconds {
		no("grace of %d s must exceed the drain of %d s, or pods are killed while they answer", o.GraceSeconds, o.DrainSeconds)
	}
	if len(problems) == 0 {
		return nil
	}
	sort.Strings(problems)
	return fmt.Errorf("%w: %s", ErrInvalid, strings.Join(problems, "; "))
}

func (o Options) validateDevice(no func(string, ...any)) {
	switch o.Device {
	case "cuda":
		if o.GPUs < 1 {
			no("gpus %d: device cuda takes at least one", o.GPUs)
		}
	case "cpu":
		// Devices that are held and not computed on have to be asked for in so many words.
		if o.GPUs != 0 && o.GPUResource == "" {
			no("gpus %d with device cpu: name the gpu resource too, if the pods are to hold devices that they do not compute on", o.GPUs)
		}
	default:
		no("device %q is neither cuda nor cpu", o.Device)
	}
	if o.GPUs < 0 {
		no("gpus %d is negative", o.GPUs)
	}
	if o.GPUResource != "" {
		if m := validation.IsQualifiedName(o.GPUResource); len(m) > 0 || !strings.Contains(o.GPUResource, "/") {
			no("gpu resource %q is not an extended resource like nvidia.com/gpu", o.GPUResource)
		}
	}
	for what, list := range map[string]map[string]string{"request": o.Requests, "limit": o.Limits} {
		for name, text := range list {
			if q, err := resource.ParseQuantity(text); err != nil || q.Sign() < 0 {
				no("%s %s: %q is not a quantity like 500m or 2Gi", what, name, text)
			}
			if o.GPUs > 0 && name == o.GPUResource {
				no("%s %s: say how many GPUs with gpus", what, name)
			}
		}
	}
	for name, request := range o.Requests {
		limit, ok := o.Limits[name]
		r, err1 := resource.ParseQuantity(request)
		l, err2 := resource.ParseQuantity(limit)
		if ok && err1 == nil && err2 == nil && r.Cmp(l) > 0 {
			no("request %s %s exceeds its limit %s", name, request, limit)
		}
	}
	if _, err := resource.ParseQuantity(o.TmpSize); err != nil {
		no("tmp size %q is not a quantity like 1Gi", o.TmpSize)
	}
}

func (o Options) validateEnv(no func(string, ...any)) {
	seen := map[string]bool{}
	check := func(name string) {
		if m := validation.IsEnvVarName(name); len(m) > 0 {
			no("environment variable %q: %s", name, m[0])
		}
		if strings.HasPrefix(name, "GREENLIGHT_") {
			no("environment variable %s is set by greenlight", name)
		}
		if seen[name] {
			no("environment variable %s is given twice", name)
		}
		seen[name] = true
	}
	for name := range o.Env {
		check(name)
	}
	for _, e := range o.EnvFrom {
		check(e.Name)
		if (e.ConfigMap == "") == (e.Secret == "") || e.Key == "" {
			no("environment variable %s: name one ConfigMap or Secret, and a key", e.Name)
		}
	}
	paths := map[string]bool{"/tmp": true}
	for _, m := range o.Mounts {
		if (m.ConfigMap == "") == (m.Secret == "") {
			no("mount %s: name one ConfigMap or Secret", m.Path)
		}
		if !path.IsAbs(m.Path) || path.Clean(m.Path) != m.Path || m.Path == "/" || strings.Contains(m.Path, ":") || paths[m.Path] {
			no("mount %q is not a clean absolute path of its own", m.Path)
		}
		paths[m.Path] = true
	}
}

// checkName says what is wrong with the name of a service, or "".
func checkName(service string) string {
	if m := validation.IsDNS1035Label(service); len(m) > 0 {
		return m[0]
	}
	if len(service) > 50 {
		return "longer than 50 characters"
	}
	return ""
}

// DeploymentName is the name of a colour's Deployment.
func DeploymentName(service, colour string) string { return service + "-" + colour }

// PreviewName is the name of the preview Service.
func PreviewName(service string) string { return service + "-preview" }

// Selector selects the pods of a colour.
func Selector(service, colour string) map[string]string {
	return map[string]string{LabelService: service, LabelColour: colour}
}

// Other is the other colour.
func Other(colour string) string {
	if colour == Blue {
		return Green
	}
	return Blue
}
