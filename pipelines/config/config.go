// Package config reads greenlight.yaml, the file in which a team says what its service is and when a new version of it
// is good enough.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
)

// ErrInvalid is wrapped by every error that Load and Parse return: the file is missing, malformed or inconsistent. A
// release that meets it has changed nothing.
var ErrInvalid = errors.New("invalid config")

// Config is greenlight.yaml. Every key that is left out has the default that its comment gives.
type Config struct {
	// Service is the name of the live Service and the stem of every other name. A DNS label of at most 40 characters.
	Service string `yaml:"service" json:"service"`
	// Namespace holds the service. Default: the kubeconfig's.
	Namespace string `yaml:"namespace" json:"namespace,omitempty"`
	// Image says how the image is built and where it goes.
	Image Image `yaml:"image" json:"image"`
	// Device is where the service computes: cuda or cpu. There is no default: cpu has to be asked for by name.
	Device string `yaml:"device" json:"device"`
	// Replicas is the number of pods of a colour. Default 1.
	Replicas int32 `yaml:"replicas" json:"replicas"`
	// Port is the container's HTTP port. Default 8080.
	Port int32 `yaml:"port" json:"port"`
	// GPU is what each pod takes. Default: one nvidia.com/gpu with device cuda, none with device cpu.
	GPU GPU `yaml:"gpu" json:"gpu"`
	// Resources are the CPU and memory of each pod, as Kubernetes quantities.
	Resources Resources `yaml:"resources" json:"resources"`
	// Env is passed to the container as it is. Not for secrets.
	Env map[string]string `yaml:"env" json:"env,omitempty"`
	// Pod places the pods on nodes.
	Pod Pod `yaml:"pod" json:"pod"`
	// Probes are the paths that the kubelet asks.
	Probes Probes `yaml:"probes" json:"probes"`
	// Drain is how long a pod that stops goes on answering, closing each connection with its answer. Default 5s.
	Drain Duration `yaml:"drain" json:"drain"`
	// ReadyTimeout is how long the candidate may take to become ready. Default 10m.
	ReadyTimeout Duration `yaml:"readyTimeout" json:"readyTimeout"`
	// Scan says which findings are too many.
	Scan Scan `yaml:"scan" json:"scan"`
	// Sign names the key that an image must be signed with.
	Sign Sign `yaml:"sign" json:"sign"`
	// Smoke is the first gate on the running candidate.
	Smoke Smoke `yaml:"smoke" json:"smoke"`
	// Warmup precedes the latency gate.
	Warmup Warmup `yaml:"warmup" json:"warmup"`
	// Latency is the gate on speed.
	Latency Latency `yaml:"latency" json:"latency"`
	// Switch moves the traffic.
	Switch Switch `yaml:"switch" json:"switch"`
	// Bake is the watch after the switch.
	Bake Bake `yaml:"bake" json:"bake"`
	// Keep says how long the previous version stays at hand.
	Keep Keep `yaml:"keep" json:"keep"`

	// Dir is the directory of the file; relative paths in it start there.
	Dir string `yaml:"-" json:"-"`
	// Path is the file itself, for messages.
	Path string `yaml:"-" json:"-"`
}

// Image says how the image is built and where it goes.
type Image struct {
	// Repository is where the image is pushed, without tag or digest.
	Repository string `yaml:"repository" json:"repository"`
	// Context is the build context, relative to the config file. Default: its directory.
	Context string `yaml:"context" json:"context,omitempty"`
	// Dockerfile is relative to the context. Default Dockerfile.
	Dockerfile string `yaml:"dockerfile" json:"dockerfile"`
	// Target is the stage of the Dockerfile to build. Default: the last.
	Target string `yaml:"target" json:"target,omitempty"`
	// Base is passed to the Dockerfile as the BASE argument: a reference pinned by digest. Default: the Dockerfile's own.
	Base string `yaml:"base" json:"base,omitempty"`
	// BuildArgs are passed to the Dockerfile as they are. Not for secrets.
	BuildArgs map[string]string `yaml:"buildArgs" json:"buildArgs,omitempty"`
	// PullSecrets name the Secrets in the namespace that the kubelet pulls with.
	PullSecrets []string `yaml:"pullSecrets" json:"pullSecrets,omitempty"`
}

// GPU is what each pod takes of an extended resource.
type GPU struct {
	// Resource is the name of the extended resource, such as nvidia.com/gpu or nvidia.com/mig-1g.10gb.
	Resource string `yaml:"resource" json:"resource,omitempty"`
	// Count is how many of it each pod takes.
	Count *int64 `yaml:"count" json:"count,omitempty"`
}

// Resources are Kubernetes quantities by resource name.
type Resources struct {
	Requests map[string]string `yaml:"requests" json:"requests,omitempty"`
	Limits   map[string]string `yaml:"limits" json:"limits,omitempty"`
}

// Pod places the pods on nodes.
type Pod struct {
	NodeSelector     map[string]string `yaml:"nodeSelector" json:"nodeSelector,omitempty"`
	Tolerations      []Toleration      `yaml:"tolerations" json:"tolerations,omitempty"`
	RuntimeClassName string            `yaml:"runtimeClassName" json:"runtimeClassName,omitempty"`
}

// Toleration is a Kubernetes toleration.
type Toleration struct {
	Key      string `yaml:"key" json:"key,omitempty"`
	Operator string `yaml:"operator" json:"operator,omitempty"`
	Value    string `yaml:"value" json:"value,omitempty"`
	Effect   string `yaml:"effect" json:"effect,omitempty"`
}

// Probes are the paths that the kubelet asks on the HTTP port.
type Probes struct {
	// Health answers while the process lives. Default /health.
	Health string `yaml:"health" json:"health"`
	// Ready answers 200 when the service can answer users. Default /ready.
	Ready string `yaml:"ready" json:"ready"`
	// Startup is how long the model may take to load before the kubelet restarts the pod. Default: readyTimeout.
	Startup Duration `yaml:"startup" json:"startup"`
}

// Scan says which findings are too many.
type Scan struct {
	// Fail lists the severities of which no finding is allowed. Default [CRITICAL].
	Fail []string `yaml:"fail" json:"fail"`
	// FixableOnly counts only findings for which a fixed version exists. Default false.
	FixableOnly bool `yaml:"fixableOnly" json:"fixableOnly"`
	// IgnoreFile is a .trivyignore or .trivyignore.yaml, relative to the config file. Default: none.
	IgnoreFile string `yaml:"ignoreFile" json:"ignoreFile,omitempty"`
}

// Sign names the key that an image must be signed with.
type Sign struct {
	// PublicKey is a PEM file, relative to the config file. Default cosign.pub. The --verify-key flag overrides it.
	PublicKey string `yaml:"publicKey" json:"publicKey"`
}

// Smoke is the first gate on the running candidate.
type Smoke struct {
	// Cases is the directory of golden cases, relative to the config file. Default cases.
	Cases string `yaml:"cases" json:"cases"`
	// Timeout is the limit of each request. Default 10s.
	Timeout Duration `yaml:"timeout" json:"timeout"`
	// Torch, CUDA and CuDNN are the versions that the service must report, as prefixes. Default: not checked.
	Torch string `yaml:"torch" json:"torch,omitempty"`
	CUDA  string `yaml:"cuda" json:"cuda,omitempty"`
	CuDNN string `yaml:"cudnn" json:"cudnn,omitempty"`
	// MinAgreement is the share of golden requests on which candidate and live must agree. Default 0: not required.
	MinAgreement Percent `yaml:"minAgreement" json:"minAgreement"`
}

// Warmup sends requests until the latency of successive batches is stable.
type Warmup struct {
	// Timeout ends the warm-up, stable or not; not stable is a no. Default 2m.
	Timeout Duration `yaml:"timeout" json:"timeout"`
}

// Latency is the gate on speed. Candidate and live are asked in turn, on a schedule that does not wait for answers.
type Latency struct {
	// Case names the golden case whose request is sent. Default: the first.
	Case string `yaml:"case" json:"case,omitempty"`
	// Rate is the number of requests a second to each of candidate and live. Default 50.
	Rate float64 `yaml:"rate" json:"rate"`
	// Budget ends the test; undecided by then is a no. Default 2m.
	Budget Duration `yaml:"budget" json:"budget"`
	// Timeout is the limit of each request. Default 5s.
	Timeout Duration `yaml:"timeout" json:"timeout"`
	// Connections is the number of connections to each side. Default 8.
	Connections int `yaml:"connections" json:"connections"`
	// Arrivals are poisson or constant. Default poisson.
	Arrivals string `yaml:"arrivals" json:"arrivals"`
	// Limits must all hold. Default: p99 at most 1s.
	Limits []LatencyLimit `yaml:"limits" json:"limits"`
	// FalseAlarm is the accepted probability of a wrong verdict over the whole test. Default 1%.
	FalseAlarm Percent `yaml:"falseAlarm" json:"falseAlarm"`
}

// LatencyLimit limits a quantile absolutely, against live, or both.
type LatencyLimit struct {
	// Quantile is between 0 and 1, for example 0.99.
	Quantile float64 `yaml:"quantile" json:"quantile"`
	// Max is the most that the quantile may be.
	Max Duration `yaml:"max" json:"max,omitempty"`
	// MaxRegression is how much worse than live it may be. Not judged while nothing is live.
	MaxRegression Percent `yaml:"maxRegression" json:"maxRegression,omitempty"`
}

// Switch moves the traffic.
type Switch struct {
	// Router is what moves it: service. Default service.
	Router string `yaml:"router" json:"router"`
	// Timeout is how long new connections may take to arrive at the candidate before traffic is moved back. Default 30s.
	Timeout Duration `yaml:"timeout" json:"timeout"`
	// ProbeRate is the number of requests a second with which the release itself watches the live Service. Default 20.
	ProbeRate float64 `yaml:"probeRate" json:"probeRate"`
}

// Bake is the watch after the switch.
type Bake struct {
	// Duration of the watch. Default 1m.
	Duration Duration `yaml:"duration" json:"duration"`
	// MaxFailed is the share of the release's own requests that may fail. Default 0.
	MaxFailed Percent `yaml:"maxFailed" json:"maxFailed"`
}

// Keep says how long the previous version stays at hand.
type Keep struct {
	// Warm is how long after the bake the previous pods stay, with their GPUs. Default 0s.
	Warm Duration `yaml:"warm" json:"warm"`
	// Cold is how long its spec is kept without pods, for rollback; greenlight prune deletes older ones. Default 24h.
	Cold Duration `yaml:"cold" json:"cold"`
}

// Load reads and checks the file at path. Errors wrap ErrInvalid and name the file, the line where the parser knows it,
// and the key.
func Load(path string) (*Config, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s does not exist; write one or pass --config", ErrInvalid, path)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrInvalid, err)
	}
	defer f.Close()
	// A config of more than a megabyte is not a config.
	data, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("%w: reading %s: %v", ErrInvalid, path, err)
	}
	return Parse(data, path)
}

// Parse is Load of data that was read from path.
func Parse(data []byte, path string) (*Config, error) {
	c := &Config{}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(c); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%w: %s is empty", ErrInvalid, path)
		}
		return nil, fmt.Errorf("%w: %s", ErrInvalid, explain(path, err))
	}
	if err := dec.Decode(&Config{}); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: %s holds more than one document", ErrInvalid, path)
	}
	c.Path, c.Dir = path, filepath.Dir(path)
	c.setDefaults()
	if err := c.validate(); err != nil {
		return nil, fmt.Errorf("%w: %s: %v", ErrInvalid, path, err)
	}
	return c, nil
}

var (
	unknownKey = regexp.MustCompile(`^line (\d+): field (\S+) not found in type \S+$`)
	atLine     = regexp.MustCompile(`^(?:yaml: )?line (\d+): (.*)$`)
)

// explain turns the parser's errors into one line that a person can act on.
func explain(path string, err error) string {
	message := err.Error()
	var typeError *yaml.TypeError
	if errors.As(err, &typeError) && len(typeError.Errors) > 0 {
		message = typeError.Errors[0]
		if more := len(typeError.Errors) - 1; more > 0 {
			return fmt.Sprintf("%s (and %d more)", oneLine(path, message), more)
		}
	}
	return oneLine(path, message)
}

func oneLine(path, message string) string {
	message = strings.Join(strings.Fields(message), " ")
	if m := unknownKey.FindStringSubmatch(message); m != nil {
		return fmt.Sprintf("%s:%s: unknown key %q", path, m[1], m[2])
	}
	if m := atLine.FindStringSubmatch(message); m != nil {
		return fmt.Sprintf("%s:%s: %s", path, m[1], m[2])
	}
	return path + ": " + message
}
