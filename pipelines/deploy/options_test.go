package deploy

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

const digest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func good() Options {
	return Options{
		Namespace: "team", Service: "digits", Colour: Green, Version: "v1.4.0-3f2a1c9", Image: "registry.localhost:15000/digits@" + digest,
		Release: "r1", Device: "cpu",
	}
}

func TestOptionsRefuse(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Options)
		want   string
	}{
		"no service":         {func(o *Options) { o.Service = "" }, "service"},
		"long service":       {func(o *Options) { o.Service = strings.Repeat("a", 51) }, "longer than 50"},
		"service with dot":   {func(o *Options) { o.Service = "a.b" }, `service "a.b"`},
		"service of digits":  {func(o *Options) { o.Service = "1a" }, `service "1a"`},
		"no namespace":       {func(o *Options) { o.Namespace = "" }, "namespace"},
		"no colour":          {func(o *Options) { o.Colour = "" }, "neither blue nor green"},
		"other colour":       {func(o *Options) { o.Colour = "red" }, "neither blue nor green"},
		"no version":         {func(o *Options) { o.Version = "" }, "version"},
		"version with space": {func(o *Options) { o.Version = "v1 0" }, "version"},
		"no image":           {func(o *Options) { o.Image = "" }, "no image"},
		"tag":                {func(o *Options) { o.Image = "r/digits:v1" }, "image"},
		"latest":             {func(o *Options) { o.Image = "r/digits" }, "image"},
		"short digest":       {func(o *Options) { o.Image = "r/digits@sha256:0123" }, "image"},
		"image of two lines": {func(o *Options) { o.Image += "\nkind: Pod" }, "image"},
		"negative replicas":  {func(o *Options) { o.Replicas = -1 }, "at least one pod"},
		"port":               {func(o *Options) { o.Port = 70000 }, "port 70000"},
		"service port":       {func(o *Options) { o.ServicePort = -1 }, "service port -1"},
		"no device":          {func(o *Options) { o.Device = "" }, "neither cuda nor cpu"},
		"other device":       {func(o *Options) { o.Device = "gpu" }, "neither cuda nor cpu"},
		"cpu with GPUs":      {func(o *Options) { o.GPUs = 1 }, "gpus 1 with device cpu"},
		"negative GPUs":      {func(o *Options) { o.Device, o.GPUs = "cuda", -1 }, "at least one"},
		"GPU resource":       {func(o *Options) { o.Device, o.GPUResource = "cuda", "gpu" }, "extended resource"},
		"GPU as request":     {func(o *Options) { o.Device, o.Requests = "cuda", map[string]string{"nvidia.com/gpu": "2"} }, "say how many GPUs"},
		"quantity":           {func(o *Options) { o.Requests = map[string]string{"cpu": "lots"} }, "not a quantity"},
		"negative quantity":  {func(o *Options) { o.Limits = map[string]string{"memory": "-1Gi"} }, "not a quantity"},
		"request over limit": {func(o *Options) {
			o.Requests, o.Limits = map[string]string{"cpu": "2"}, map[string]string{"cpu": "500m"}
		}, "exceeds its limit"},
		"tmp":          {func(o *Options) { o.TmpSize = "big" }, "tmp size"},
		"env name":     {func(o *Options) { o.Env = map[string]string{"A B": "x"} }, "environment variable"},
		"reserved env": {func(o *Options) { o.Env = map[string]string{"GREENLIGHT_COLOUR": "x"} }, "set by greenlight"},
		"env twice": {func(o *Options) {
			o.Env, o.EnvFrom = map[string]string{"A": "x"}, []EnvFrom{{Name: "A", Secret: "s", Key: "k"}}
		}, "given twice"},
		"env from two":          {func(o *Options) { o.EnvFrom = []EnvFrom{{Name: "A", Secret: "s", ConfigMap: "c", Key: "k"}} }, "name one ConfigMap or Secret"},
		"env from no key":       {func(o *Options) { o.EnvFrom = []EnvFrom{{Name: "A", Secret: "s"}} }, "and a key"},
		"mount over tmp":        {func(o *Options) { o.Mounts = []Mount{{Path: "/tmp", Secret: "s"}} }, "mount"},
		"relative mount":        {func(o *Options) { o.Mounts = []Mount{{Path: "a/b", Secret: "s"}} }, "mount"},
		"climbing mount":        {func(o *Options) { o.Mounts = []Mount{{Path: "/a/../etc", Secret: "s"}} }, "mount"},
		"probe without slash":   {func(o *Options) { o.Probes.Readiness = "ready" }, "readiness probe"},
		"probe with new line":   {func(o *Options) { o.Probes.Liveness = "/a\nb" }, "liveness probe"},
		"grace within drain":    {func(o *Options) { o.DrainSeconds, o.GraceSeconds = 30, 30 }, "must exceed the drain"},
		"grace of another kind": {func(o *Options) { o.DrainSeconds = -2 }, "must exceed the drain"},
	} {
		t.Run(name, func(t *testing.T) {
			o := good()
			c.change(&o)
			_, err := Render(o)
			require.ErrorIs(t, err, ErrInvalid)
			require.ErrorContains(t, err, c.want)
			require.NotContains(t, err.Error(), "\n")
		})
	}
}

// typed is what the API server would make of an apply configuration.
func typed[T any](t *testing.T, from any) T {
	t.Helper()
	b, err := json.Marshal(from)
	require.NoError(t, err)
	var to T
	require.NoError(t, json.Unmarshal(b, &to))
	return to
}

func TestRender(t *testing.T) {
	o := good()
	o.Device, o.GPUs, o.GPUResource, o.Replicas = "cuda", 2, "nvidia.com/mig-1g.10gb", 3
	o.Env = map[string]string{"ODD": "a: b\n---\nkind: Secret\n$(PATH) \"quoted\""}
	o.EnvFrom = []EnvFrom{{Name: "TOKEN", Secret: "hub", Key: "token"}, {Name: "MODE", ConfigMap: "settings", Key: "mode"}}
	o.Mounts = []Mount{{Path: "/models", ConfigMap: "models"}, {Path: "/keys", Secret: "keys"}}
	o.Requests, o.Limits = map[string]string{"cpu": "500m"}, map[string]string{"memory": "2Gi"}
	o.NodeSelector = map[string]string{"gpu": "yes"}
	o.Tolerations = []corev1.Toleration{{Key: "nvidia.com/gpu", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule}}
	o.RuntimeClass, o.PullSecrets, o.RunAsUser, o.MaxUnavailable = "nvidia", []string{"pull"}, 10001, 1
	o.DrainSeconds = 12
	s, err := Render(o)
	require.NoError(t, err)
	d := typed[appsv1.Deployment](t, s.Deployment)
	require.Equal(t, "digits-green", d.Name)
	require.Equal(t, "team", d.Namespace)
	require.Equal(t, Selector("digits", Green), d.Spec.Selector.MatchLabels)
	require.Equal(t, Manager, d.Spec.Template.Labels[LabelManagedBy])
	require.Equal(t, o.Version, d.Spec.Template.Labels[LabelVersion])
	require.Equal(t, o.Image, d.Annotations[AnnotationImage])
	require.Equal(t, appsv1.RecreateDeploymentStrategyType, d.Spec.Strategy.Type)
	require.EqualValues(t, 3, *d.Spec.Replicas)
	pod := d.Spec.Template.Spec
	require.False(t, *pod.AutomountServiceAccountToken)
	require.Equal(t, "digits", pod.ServiceAccountName)
	require.True(t, *pod.SecurityContext.RunAsNonRoot)
	require.EqualValues(t, 10001, *pod.SecurityContext.RunAsUser)
	require.Equal(t, corev1.SeccompProfileTypeRuntimeDefault, pod.SecurityContext.SeccompProfile.Type)
	require.EqualValues(t, 37, *pod.TerminationGracePeriodSeconds)
	require.Equal(t, "nvidia", *pod.RuntimeClassName)
	require.Equal(t, o.Tolerations, pod.Tolerations)
	require.Equal(t, o.NodeSelector, pod.NodeSelector)
	require.Equal(t, []corev1.LocalObjectReference{{Name: "pull"}}, pod.ImagePullSecrets)
	require.Len(t, pod.Containers, 1)
	c := pod.Containers[0]
	require.Equal(t, o.Image, c.Image)
	require.False(t, *c.SecurityContext.AllowPrivilegeEscalation)
	require.True(t, *c.SecurityContext.ReadOnlyRootFilesystem)
	require.Equal(t, []corev1.Capability{"ALL"}, c.SecurityContext.Capabilities.Drop)
	require.Equal(t, "2", c.Resources.Limits.Name("nvidia.com/mig-1g.10gb", "").String())
	require.Equal(t, "2", c.Resources.Requests.Name("nvidia.com/mig-1g.10gb", "").String())
	require.Equal(t, "500m", c.Resources.Requests.Cpu().String())
	require.Equal(t, "2Gi", c.Resources.Limits.Memory().String())
	require.EqualValues(t, 600, c.StartupProbe.FailureThreshold)
	require.Equal(t, "/ready", c.StartupProbe.HTTPGet.Path)
	require.Equal(t, "/health", c.LivenessProbe.HTTPGet.Path)
	require.Equal(t, "http", c.Ports[0].Name)
	env := map[string]corev1.EnvVar{}
	for _, e := range c.Env {
		env[e.Name] = e
	}
	require.Equal(t, "a: b\n---\nkind: Secret\n$$(PATH) \"quoted\"", env["ODD"].Value)
	require.Equal(t, "green", env["GREENLIGHT_COLOUR"].Value)
	require.Equal(t, "12", env["GREENLIGHT_DRAIN_SECONDS"].Value)
	require.Equal(t, "hub", env["TOKEN"].ValueFrom.SecretKeyRef.Name)
	require.Equal(t, "mode", env["MODE"].ValueFrom.ConfigMapKeyRef.Key)
	require.NotContains(t, env, "NVIDIA_VISIBLE_DEVICES")
	mounts := map[string]bool{}
	for _, m := range c.VolumeMounts {
		mounts[m.MountPath] = m.ReadOnly
	}
	require.Equal(t, map[string]bool{"/tmp": false, "/models": true, "/keys": true}, mounts)
	require.NotNil(t, s.PodDisruptionBudget)
	require.NotNil(t, s.ServiceAccount)
	preview := typed[corev1.Service](t, s.Preview)
	require.Equal(t, "digits-preview", preview.Name)
	require.Equal(t, Selector("digits", Green), preview.Spec.Selector)

	again, err := Render(o)
	require.NoError(t, err)
	require.Equal(t, s, again, "the same options make the same objects")
}

func TestRenderOnCPU(t *testing.T) {
	o := good()
	o.ServiceAccount = "existing"
	o.DrainSeconds = -1
	s, err := Render(o)
	require.NoError(t, err)
	require.Nil(t, s.ServiceAccount)
	require.Nil(t, s.PodDisruptionBudget)
	pod := typed[appsv1.Deployment](t, s.Deployment).Spec.Template.Spec
	require.Equal(t, "existing", pod.ServiceAccountName)
	env := map[string]string{}
	for _, e := range pod.Containers[0].Env {
		env[e.Name] = e.Value
	}
	require.Equal(t, "void", env["NVIDIA_VISIBLE_DEVICES"])
	require.Equal(t, "0", env["GREENLIGHT_DRAIN_SECONDS"])
	require.Empty(t, pod.Containers[0].Resources.Limits)
	require.Nil(t, pod.RuntimeClassName)
}
