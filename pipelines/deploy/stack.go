package deploy

import (
	"fmt"
	"sort"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	appsac "k8s.io/client-go/applyconfigurations/apps/v1"
	coreac "k8s.io/client-go/applyconfigurations/core/v1"
	policyac "k8s.io/client-go/applyconfigurations/policy/v1"

	"github.com/greenlight-ci/greenlight/manifests"
)

// Stack is every object of a candidate as it is sent to the API server.
type Stack struct {
	Deployment *appsac.DeploymentApplyConfiguration
	Preview    *coreac.ServiceApplyConfiguration
	// ServiceAccount is nil when the options name an existing one.
	ServiceAccount *coreac.ServiceAccountApplyConfiguration
	// PodDisruptionBudget is nil when the options ask for none.
	PodDisruptionBudget *policyac.PodDisruptionBudgetApplyConfiguration
}

// Render returns the objects that Run would apply, without talking to the cluster (Client may be nil), for policies and
// for a dry run. Errors wrap ErrInvalid or come from the templates.
func Render(o Options) (Stack, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return Stack{}, err
	}
	return o.render()
}

func (o Options) render() (Stack, error) {
	s := Stack{Deployment: &appsac.DeploymentApplyConfiguration{}, Preview: &coreac.ServiceApplyConfiguration{}}
	if err := manifests.Render(manifests.Deployment, o.deploymentValues(), s.Deployment); err != nil {
		return Stack{}, err
	}
	if err := o.renderService(PreviewName(o.Service), corev1.ServiceTypeClusterIP, nil, s.Preview); err != nil {
		return Stack{}, err
	}
	if o.ServiceAccount == "" {
		s.ServiceAccount = &coreac.ServiceAccountApplyConfiguration{}
		if err := manifests.Render(manifests.ServiceAccount, map[string]any{
			"Name": o.Service, "Namespace": o.Namespace, "Labels": o.serviceLabels(),
		}, s.ServiceAccount); err != nil {
			return Stack{}, err
		}
	}
	if o.MaxUnavailable > 0 {
		s.PodDisruptionBudget = &policyac.PodDisruptionBudgetApplyConfiguration{}
		if err := manifests.Render(manifests.PodDisruptionBudget, map[string]any{
			"Name": DeploymentName(o.Service, o.Colour), "Namespace": o.Namespace, "Labels": o.labels(),
			"MaxUnavailable": o.MaxUnavailable, "Selector": Selector(o.Service, o.Colour),
		}, s.PodDisruptionBudget); err != nil {
			return Stack{}, err
		}
	}
	return s, s.check(o)
}

// check makes sure that what the templates made is what was asked for: they are data too.
func (s Stack) check(o Options) error {
	d := s.Deployment
	switch {
	case d.Name == nil || *d.Name != DeploymentName(o.Service, o.Colour), d.Namespace == nil || *d.Namespace != o.Namespace,
		d.Kind == nil || *d.Kind != "Deployment":
		return fmt.Errorf("%w: the template does not make the Deployment %s/%s", ErrInvalid, o.Namespace, DeploymentName(o.Service, o.Colour))
	case d.Spec == nil || d.Spec.Template == nil || d.Spec.Template.Spec == nil || len(d.Spec.Template.Spec.Containers) != 1:
		return fmt.Errorf("%w: the template does not make one container", ErrInvalid)
	}
	c := d.Spec.Template.Spec.Containers[0]
	if c.Image == nil || *c.Image != o.Image {
		return fmt.Errorf("%w: the template does not run the image %s", ErrInvalid, o.Image)
	}
	for key, value := range Selector(o.Service, o.Colour) {
		if d.Spec.Selector == nil || d.Spec.Selector.MatchLabels[key] != value || d.Spec.Template.Labels[key] != value ||
			s.Preview.Spec == nil || s.Preview.Spec.Selector[key] != value {
			return fmt.Errorf("%w: the templates do not select by %s=%s", ErrInvalid, key, value)
		}
	}
	return nil
}

func (o Options) renderService(name string, kind corev1.ServiceType, annotations map[string]string, into any) error {
	if annotations == nil {
		annotations = map[string]string{}
	}
	return manifests.Render(manifests.Service, map[string]any{
		"Name": name, "Namespace": o.Namespace, "Labels": o.serviceLabels(), "Annotations": annotations,
		"Type": kind, "Selector": Selector(o.Service, o.Colour), "Port": o.ServicePort,
	}, into)
}

// serviceLabels are on objects that both colours share.
func (o Options) serviceLabels() map[string]string {
	return map[string]string{LabelName: o.Service, LabelManagedBy: Manager, LabelService: o.Service}
}

func (o Options) labels() map[string]string {
	l := o.serviceLabels()
	l[LabelColour] = o.Colour
	l[LabelVersion] = o.Version
	return l
}

func (o Options) deploymentValues() map[string]any {
	account := o.ServiceAccount
	if account == "" {
		account = o.Service
	}
	secrets := make([]corev1.LocalObjectReference, 0, len(o.PullSecrets))
	for _, name := range o.PullSecrets {
		secrets = append(secrets, corev1.LocalObjectReference{Name: name})
	}
	requests, limits := o.resources()
	volumes, mounts := o.volumes()
	return map[string]any{
		"Name": DeploymentName(o.Service, o.Colour), "Namespace": o.Namespace, "Labels": o.labels(), "PodLabels": o.labels(),
		"Annotations": map[string]string{AnnotationImage: o.Image, AnnotationRelease: o.Release},
		"Replicas":    o.Replicas, "Selector": Selector(o.Service, o.Colour),
		// Only a note in the Deployment's status: whether to go on waiting is decided here.
		"ProgressDeadlineSeconds": int32(o.Timeout.Seconds()) + 60,
		"ServiceAccount":          account, "GraceSeconds": o.GraceSeconds, "ImagePullSecrets": secrets,
		"NodeSelector": o.NodeSelector, "Tolerations": o.Tolerations, "RuntimeClass": o.RuntimeClass, "RunAsUser": o.RunAsUser,
		"Image": o.Image, "Port": o.Port, "Env": o.env(), "Requests": requests, "Limits": limits, "Probes": o.Probes,
		"Volumes": volumes, "VolumeMounts": mounts,
	}
}

func (o Options) resources() (requests, limits map[string]string) {
	requests, limits = map[string]string{}, map[string]string{}
	for k, v := range o.Requests {
		requests[k] = v
	}
	for k, v := range o.Limits {
		limits[k] = v
	}
	if o.GPUs > 0 {
		// Extended resources cannot be overcommitted: request and limit are one.
		count := strconv.FormatInt(o.GPUs, 10)
		requests[o.GPUResource], limits[o.GPUResource] = count, count
	}
	return requests, limits
}

func (o Options) env() []corev1.EnvVar {
	values := map[string]string{
		"GREENLIGHT_COLOUR": o.Colour, "GREENLIGHT_VERSION": o.Version, "GREENLIGHT_DEVICE": o.Device,
		"GREENLIGHT_DRAIN_SECONDS": strconv.Itoa(o.DrainSeconds), "GREENLIGHT_PORT": strconv.Itoa(int(o.Port)),
	}
	if o.Device == "cpu" {
		// Where nvidia is a node's default runtime, CUDA images see every GPU of the node unless told otherwise.
		values["NVIDIA_VISIBLE_DEVICES"] = "void"
	}
	for name, value := range o.Env {
		// The kubelet would expand $(NAME); doubled, it is passed as it is.
		values[name] = strings.ReplaceAll(value, "$(", "$$(")
	}
	out := make([]corev1.EnvVar, 0, len(values)+len(o.EnvFrom))
	for name, value := range values {
		out = append(out, corev1.EnvVar{Name: name, Value: value})
	}
	for _, e := range o.EnvFrom {
		source := &corev1.EnvVarSource{}
		if e.Secret != "" {
			source.SecretKeyRef = &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: e.Secret}, Key: e.Key}
		} else {
			source.ConfigMapKeyRef = &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: e.ConfigMap}, Key: e.Key}
		}
		out = append(out, corev1.EnvVar{Name: e.Name, ValueFrom: source})
	}
	// A stable order, so that the same options make the same pods.
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

func (o Options) volumes() ([]map[string]any, []corev1.VolumeMount) {
	volumes := []map[string]any{{"name": "tmp", "emptyDir": map[string]any{"sizeLimit": o.TmpSize}}}
	mounts := []corev1.VolumeMount{{Name: "tmp", MountPath: "/tmp"}}
	for i, m := range o.Mounts {
		name := "mount-" + strconv.Itoa(i)
		if m.Secret != "" {
			volumes = append(volumes, map[string]any{"name": name, "secret": map[string]any{"secretName": m.Secret}})
		} else {
			volumes = append(volumes, map[string]any{"name": name, "configMap": map[string]any{"name": m.ConfigMap}})
		}
		mounts = append(mounts, corev1.VolumeMount{Name: name, MountPath: m.Path, ReadOnly: true})
	}
	return volumes, mounts
}
