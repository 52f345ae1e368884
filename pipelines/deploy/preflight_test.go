package deploy

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	authv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"github.com/greenlight-ci/greenlight/manifests"
)

// allow answers access reviews: everything but what refused names. Rules are listed when rules is not nil.
func allow(client *fake.Clientset, rules []authv1.ResourceRule, refused ...string) *int {
	asked := 0
	client.PrependReactor("create", "selfsubjectrulesreviews", func(a k8stesting.Action) (bool, runtime.Object, error) {
		return true, &authv1.SelfSubjectRulesReview{Status: authv1.SubjectRulesReviewStatus{ResourceRules: rules, Incomplete: rules == nil}}, nil
	})
	client.PrependReactor("create", "selfsubjectaccessreviews", func(a k8stesting.Action) (bool, runtime.Object, error) {
		asked++
		r := a.(k8stesting.CreateAction).GetObject().(*authv1.SelfSubjectAccessReview).DeepCopy()
		at := r.Spec.ResourceAttributes
		access := Access{Group: at.Group, Resource: at.Resource, Verb: at.Verb, Name: at.Name}
		if at.Subresource != "" {
			access.Resource += "/" + at.Subresource
		}
		r.Status.Allowed = !slices.Contains(refused, access.String())
		return true, r, nil
	})
	return &asked
}

func TestMissingAccess(t *testing.T) {
	client := fake.NewClientset()
	allow(client, nil, "patch services", "get pods/log", "create jobs.batch", "delete jobs.batch")
	missing, err := MissingAccess(t.Context(), client, "team", NeededAccess())
	require.NoError(t, err)
	require.Equal(t, "create, delete jobs.batch; get pods/log; patch services", describe(missing))
}

func TestMissingAccessAsksOnce(t *testing.T) {
	client := fake.NewClientset()
	asked := allow(client, []authv1.ResourceRule{{Verbs: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}}})
	missing, err := MissingAccess(t.Context(), client, "team", NeededAccess())
	require.NoError(t, err)
	require.Empty(t, missing)
	require.Zero(t, *asked)
}

func TestGranted(t *testing.T) {
	get := []string{"get"}
	for name, c := range map[string]struct {
		rule authv1.ResourceRule
		want bool
	}{
		"exact":           {authv1.ResourceRule{Verbs: get, APIGroups: []string{""}, Resources: []string{"pods/log"}}, true},
		"all resources":   {authv1.ResourceRule{Verbs: get, APIGroups: []string{""}, Resources: []string{"*"}}, true},
		"other verb":      {authv1.ResourceRule{Verbs: []string{"list"}, APIGroups: []string{""}, Resources: []string{"pods/log"}}, false},
		"other group":     {authv1.ResourceRule{Verbs: get, APIGroups: []string{"apps"}, Resources: []string{"pods/log"}}, false},
		"no subresource":  {authv1.ResourceRule{Verbs: get, APIGroups: []string{""}, Resources: []string{"pods"}}, false},
		"one object only": {authv1.ResourceRule{Verbs: get, APIGroups: []string{""}, Resources: []string{"pods/log"}, ResourceNames: []string{"x"}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.want, granted([]authv1.ResourceRule{c.rule}, Access{Resource: "pods/log", Verb: "get"}))
		})
	}
}

// The RBAC file that is handed to administrators grants what preflight asks for.
func TestRBACGrantsWhatIsNeeded(t *testing.T) {
	text, err := manifests.RenderRBAC(manifests.Permissions{Namespace: "team"})
	require.NoError(t, err)
	var rules []authv1.ResourceRule
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
	for {
		var role rbacv1.Role
		if err := decoder.Decode(&role); errors.Is(err, io.EOF) {
			break
		} else {
			require.NoError(t, err)
		}
		if role.Kind != "Role" {
			continue
		}
		for _, r := range role.Rules {
			rules = append(rules, authv1.ResourceRule{Verbs: r.Verbs, APIGroups: r.APIGroups, Resources: r.Resources, ResourceNames: r.ResourceNames})
		}
	}
	require.NotEmpty(t, rules)
	for _, a := range NeededAccess() {
		require.True(t, granted(rules, a), a.String())
	}
}

func list(pairs ...string) corev1.ResourceList {
	l := corev1.ResourceList{corev1.ResourcePods: resource.MustParse("110")}
	for i := 0; i < len(pairs); i += 2 {
		l[corev1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return l
}

func node(name string, allocatable corev1.ResourceList, change ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{
		Allocatable: allocatable, Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
	}}
	for _, c := range change {
		c(n)
	}
	return n
}

func user(name, on string, requests corev1.ResourceList, labels map[string]string) *corev1.Pod {
	delete(requests, corev1.ResourcePods)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: name, Labels: labels},
		Spec:       corev1.PodSpec{NodeName: on, Containers: []corev1.Container{{Resources: corev1.ResourceRequirements{Requests: requests}}}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning},
	}
}

func TestCapacity(t *testing.T) {
	const gpu = "nvidia.com/gpu"
	tainted := func(n *corev1.Node) {
		n.Spec.Taints = []corev1.Taint{{Key: "gpu", Value: "yes", Effect: corev1.TaintEffectNoSchedule}}
	}
	for name, c := range map[string]struct {
		objects []runtime.Object
		change  func(*Options)
		want    string
	}{
		"enough":       {objects: []runtime.Object{node("a", list(gpu, "2"))}},
		"on two nodes": {objects: []runtime.Object{node("a", list(gpu, "1")), node("b", list(gpu, "1"))}},
		"none free":    {objects: []runtime.Object{node("a", list(gpu, "2")), user("x", "a", list(gpu, "1"), nil)}, want: "room for 1 of 2 pods on 1 matching nodes (nvidia.com/gpu: 2 × 1 needed, 1 free)"},
		"own leftover": {objects: []runtime.Object{node("a", list(gpu, "2")), user("x", "a", list(gpu, "2"), Selector("digits", Green))}},
		"live holds":   {objects: []runtime.Object{node("a", list(gpu, "2")), user("x", "a", list(gpu, "2"), Selector("digits", Blue))}, want: "room for 0 of 2"},
		"done pods": {objects: []runtime.Object{node("a", list(gpu, "2")), func() runtime.Object {
			p := user("x", "a", list(gpu, "2"), nil)
			p.Status.Phase = corev1.PodSucceeded
			return p
		}()}},
		"pending pods":     {objects: []runtime.Object{node("a", list(gpu, "2")), user("x", "", list(gpu, "2"), nil)}},
		"no such resource": {objects: []runtime.Object{node("a", list("amd.com/gpu", "2"))}, want: "no node offers nvidia.com/gpu; nodes offer amd.com/gpu"},
		"no devices":       {objects: []runtime.Object{node("a", list())}, want: "is the device plugin running?"},
		"memory":           {objects: []runtime.Object{node("a", list(gpu, "2", "memory", "3Gi"))}, change: func(o *Options) { o.Limits = map[string]string{"memory": "2Gi"} }, want: "memory: 2 × 2Gi needed, 3Gi free"},
		"split":            {objects: []runtime.Object{node("a", list(gpu, "2", "memory", "0")), node("b", list("memory", "8Gi"))}, change: func(o *Options) { o.Limits = map[string]string{"memory": "2Gi"} }, want: "not together on one node"},
		"two per pod":      {objects: []runtime.Object{node("a", list(gpu, "3")), node("b", list(gpu, "1"))}, change: func(o *Options) { o.GPUs = 2 }, want: "room for 1 of 2"},
		"cordoned":         {objects: []runtime.Object{node("a", list(gpu, "2"), func(n *corev1.Node) { n.Spec.Unschedulable = true })}, want: "none of 1 nodes is ready"},
		"not ready":        {objects: []runtime.Object{node("a", list(gpu, "2"), func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionUnknown })}, want: "none of 1 nodes"},
		"tainted":          {objects: []runtime.Object{node("a", list(gpu, "2"), tainted)}, want: "only tolerated taints"},
		"tolerated": {objects: []runtime.Object{node("a", list(gpu, "2"), tainted)}, change: func(o *Options) {
			o.Tolerations = []corev1.Toleration{{Key: "gpu", Operator: corev1.TolerationOpExists}}
		}},
		"tolerated by value":   {objects: []runtime.Object{node("a", list(gpu, "2"), tainted)}, change: func(o *Options) { o.Tolerations = []corev1.Toleration{{Key: "gpu", Value: "yes"}} }},
		"tolerates another":    {objects: []runtime.Object{node("a", list(gpu, "2"), tainted)}, change: func(o *Options) { o.Tolerations = []corev1.Toleration{{Key: "gpu", Value: "no"}} }, want: "only tolerated taints"},
		"selector":             {objects: []runtime.Object{node("a", list(gpu, "2"))}, change: func(o *Options) { o.NodeSelector = map[string]string{"a": "b"} }, want: "node selector a=b"},
		"full of pods":         {objects: []runtime.Object{node("a", corev1.ResourceList{gpu: resource.MustParse("2"), "pods": resource.MustParse("1")})}, want: "room for 1 of 2"},
		"tiny allocation fits": {objects: []runtime.Object{node("a", list(gpu, "2", "cpu", "1"))}, change: func(o *Options) { o.Requests = map[string]string{"cpu": "500m"} }},
	} {
		t.Run(name, func(t *testing.T) {
			o := good()
			o.Device, o.Replicas, o.Client = "cuda", 2, fake.NewClientset(c.objects...)
			if c.change != nil {
				c.change(&o)
			}
			got, err := o.withDefaults().capacity(t.Context())
			require.NoError(t, err)
			if c.want == "" {
				require.Empty(t, got)
			} else {
				require.Contains(t, got, c.want)
			}
		})
	}
}

func TestPodRequests(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	of := func(cpu string) corev1.ResourceRequirements {
		return corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse(cpu)}}
	}
	p := &corev1.Pod{Spec: corev1.PodSpec{
		Containers:     []corev1.Container{{Resources: of("1")}, {Resources: of("1")}},
		InitContainers: []corev1.Container{{Resources: of("500m"), RestartPolicy: &always}, {Resources: of("4")}},
		Overhead:       corev1.ResourceList{"cpu": resource.MustParse("250m")},
	}}
	got := podRequests(p)["cpu"]
	require.Equal(t, "4750m", got.String())
}

func TestPreflight(t *testing.T) {
	team := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "team"}}
	settings := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: "settings"}, Data: map[string]string{"mode": "x"}}
	hub := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: "hub"}, Data: map[string][]byte{"token": nil}}
	forbidSecrets := func(client *fake.Clientset) {
		client.PrependReactor("get", "secrets", func(k8stesting.Action) (bool, runtime.Object, error) {
			return true, nil, apierrors.NewForbidden(corev1.Resource("secrets"), "hub", nil)
		})
		client.PrependReactor("list", "nodes", func(k8stesting.Action) (bool, runtime.Object, error) {
			return true, nil, apierrors.NewForbidden(corev1.Resource("nodes"), "", nil)
		})
	}
	for name, c := range map[string]struct {
		objects []runtime.Object
		change  func(*Options)
		client  func(*fake.Clientset)
		refused []string
		want    []string
		notes   []string
	}{
		"good":             {objects: []runtime.Object{team, settings, hub, node("a", list())}},
		"no namespace":     {want: []string{"the namespace team does not exist"}},
		"permissions":      {objects: []runtime.Object{team, settings, hub, node("a", list())}, refused: []string{"patch services", "watch pods"}, want: []string{"no permission in namespace team to watch pods; patch services"}},
		"all that misses":  {objects: []runtime.Object{team}, want: []string{"config map team/settings, which the pods name, does not exist", "secret team/hub, which the pods name, does not exist", "capacity: none of 0 nodes"}},
		"keys":             {objects: []runtime.Object{team, settings, hub, node("a", list())}, change: func(o *Options) { o.EnvFrom[0].Key, o.EnvFrom[1].Key = "x", "y" }, want: []string{`config map team/settings has no key "x"`, `secret team/hub has no key "y"`}},
		"not ours to look": {objects: []runtime.Object{team, settings, hub}, client: forbidSecrets, notes: []string{"secret team/hub was not checked", "capacity was not checked"}},
		"foreign":          {objects: []runtime.Object{team, settings, hub, node("a", list()), &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: "digits-blue"}}}, want: []string{"deployment team/digits-blue exists and was not made by greenlight"}},
		"live candidate":   {objects: []runtime.Object{team, settings, hub, node("a", list()), serviceOf("digits", Green)}, want: []string{"green is live"}},
		"cluster grows":    {objects: []runtime.Object{team, settings, hub}, change: func(o *Options) { o.ScaleUp = true }, notes: []string{"expected to add nodes"}},
	} {
		t.Run(name, func(t *testing.T) {
			client := fake.NewClientset(c.objects...)
			allow(client, nil, c.refused...)
			if c.client != nil {
				c.client(client)
			}
			o := good()
			o.Client, o.Image, o.Version = client, "", ""
			o.EnvFrom = []EnvFrom{{Name: "MODE", ConfigMap: "settings", Key: "mode"}, {Name: "TOKEN", Secret: "hub", Key: "token"}}
			if c.change != nil {
				c.change(&o)
			}
			r, err := Preflight(t.Context(), o)
			if len(c.want) == 0 {
				require.NoError(t, err)
			} else {
				require.ErrorIs(t, err, ErrPreflight)
				require.NotContains(t, err.Error(), "\n")
			}
			for _, want := range c.want {
				require.ErrorContains(t, err, want)
			}
			for i, want := range c.notes {
				require.Contains(t, r.Notes[i], want)
			}
			require.Equal(t, name == "foreign", errors.Is(err, ErrForeign))
			for _, a := range client.Actions() {
				require.NotContains(t, []string{"update", "patch", "delete"}, a.GetVerb())
			}
		})
	}
}
