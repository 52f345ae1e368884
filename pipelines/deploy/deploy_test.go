package deploy

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"
)

// controllers do what a cluster's controllers do, far enough for these tests: pods and endpoints follow Deployments and
// Services. shape changes each new pod.
func controllers(t *testing.T, client *fake.Clientset, shape ...func(*corev1.Pod)) {
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan struct{})
	t.Cleanup(func() {
		cancel()
		<-stopped
	})
	go func() {
		defer close(stopped)
		for ctx.Err() == nil {
			reconcile(ctx, client, shape)
			_ = sleep(ctx, 5*time.Millisecond)
		}
	}()
}

func reconcile(ctx context.Context, client *fake.Clientset, shape []func(*corev1.Pod)) {
	deployments, err := client.AppsV1().Deployments("team").List(ctx, metav1.ListOptions{})
	if err != nil {
		return
	}
	wanted := map[string]*corev1.Pod{}
	for i := range deployments.Items {
		d := &deployments.Items[i]
		n := replicas(d.Spec.Replicas)
		for r := int32(0); r < n; r++ {
			p := podOf(d, string(rune('a'+r)), shape...)
			wanted[p.Name] = p
		}
		ready := int32(0)
		for _, p := range wanted {
			if podReady(p) && p.Labels[LabelColour] == d.Labels[LabelColour] {
				ready++
			}
		}
		status := appsv1.DeploymentStatus{ObservedGeneration: d.Generation, Replicas: n, UpdatedReplicas: n, ReadyReplicas: ready}
		if d.Status.Replicas != n || d.Status.ReadyReplicas != ready {
			d.Status = status
			_, _ = client.AppsV1().Deployments("team").UpdateStatus(ctx, d, metav1.UpdateOptions{})
		}
	}
	pods, err := client.CoreV1().Pods("team").List(ctx, metav1.ListOptions{})
	if err != nil {
		return
	}
	for i := range pods.Items {
		p := &pods.Items[i]
		if want := wanted[p.Name]; want == nil || want.Annotations[AnnotationRelease] != p.Annotations[AnnotationRelease] {
			_ = client.CoreV1().Pods("team").Delete(ctx, p.Name, metav1.DeleteOptions{})
		} else {
			delete(wanted, p.Name)
		}
	}
	for _, p := range wanted {
		_, _ = client.CoreV1().Pods("team").Create(ctx, p, metav1.CreateOptions{})
	}
	services, err := client.CoreV1().Services("team").List(ctx, metav1.ListOptions{})
	if err != nil {
		return
	}
	for i := range services.Items {
		s := &services.Items[i]
		slice := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: s.Name, Labels: map[string]string{"kubernetes.io/service-name": s.Name}}}
		pods, err := client.CoreV1().Pods("team").List(ctx, metav1.ListOptions{LabelSelector: labels.SelectorFromSet(s.Spec.Selector).String()})
		if err != nil {
			return
		}
		for i := range pods.Items {
			ready := podReady(&pods.Items[i])
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
				Conditions: discoveryv1.EndpointConditions{Ready: &ready}, TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: pods.Items[i].Name},
			})
		}
		slices := client.DiscoveryV1().EndpointSlices("team")
		if _, err := slices.Update(ctx, slice, metav1.UpdateOptions{}); apierrors.IsNotFound(err) {
			_, _ = slices.Create(ctx, slice, metav1.CreateOptions{})
		}
	}
}

func serviceOf(name, colour string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: name, Labels: good().serviceLabels()},
		Spec:       corev1.ServiceSpec{Selector: Selector("digits", colour)},
	}
}

func TestFirstRelease(t *testing.T) {
	client := fake.NewClientset()
	controllers(t, client, ready)
	var log bytes.Buffer
	o := good()
	o.Client, o.Log, o.Replicas, o.Timeout, o.Colour = client, &log, 2, 20*time.Second, Blue
	result, err := Run(t.Context(), o)
	require.NoError(t, err, log.String())
	require.EqualValues(t, 2, result.Ready)
	require.Equal(t, "digits-blue", result.Deployment)
	require.Equal(t, "http://digits-preview.team.svc", result.PreviewURL)
	require.False(t, result.Replaced)

	state, err := Colours(t.Context(), client, "team", "digits")
	require.NoError(t, err)
	require.Empty(t, state.Live)
	require.Equal(t, Blue, state.Candidate())
	require.Equal(t, o.Version, state.Colours[Blue].Version)
	require.Equal(t, o.Image, state.Colours[Blue].Image)
	require.False(t, state.Colours[Green].Exists)

	created, err := EnsureLiveService(t.Context(), o)
	require.NoError(t, err)
	require.True(t, created)
	created, err = EnsureLiveService(t.Context(), o)
	require.NoError(t, err)
	require.False(t, created, "again changes nothing")
	state, err = Colours(t.Context(), client, "team", "digits")
	require.NoError(t, err)
	require.Equal(t, Blue, state.Live)
	require.Equal(t, Green, state.Candidate())

	// What is live is neither changed, nor scaled, nor deleted.
	target := Target{Client: client, Namespace: "team", Service: "digits", Colour: Blue}
	_, err = Run(t.Context(), o)
	require.ErrorIs(t, err, ErrLive)
	require.ErrorIs(t, Scale(t.Context(), target, 0), ErrLive)
	require.ErrorIs(t, Delete(t.Context(), target), ErrLive)
	other := o
	other.Colour = Green
	_, err = EnsureLiveService(t.Context(), other)
	require.ErrorIs(t, err, ErrLive)

	otherTarget := target
	otherTarget.Colour = Green
	require.ErrorIs(t, DeleteLiveService(t.Context(), otherTarget), ErrLive)
	require.NoError(t, DeleteLiveService(t.Context(), target))
	require.NoError(t, DeleteLiveService(t.Context(), target), "again changes nothing")
	require.NoError(t, Delete(t.Context(), target), "no longer live")
}

func TestScaleAndDelete(t *testing.T) {
	client := fake.NewClientset(serviceOf("digits", Blue))
	controllers(t, client, ready)
	o := good()
	o.Client, o.Timeout, o.MaxUnavailable = client, 20*time.Second, 1
	_, err := Run(t.Context(), o)
	require.NoError(t, err)
	target := Target{Client: client, Namespace: "team", Service: "digits", Colour: Green, Timeout: 10 * time.Second}
	require.NoError(t, Scale(t.Context(), target, 0))
	pods, err := client.CoreV1().Pods("team").List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	require.Empty(t, pods.Items)
	require.NoError(t, Scale(t.Context(), target, 2))
	require.NoError(t, Delete(t.Context(), target))
	require.NoError(t, Delete(t.Context(), target), "again changes nothing")
	require.NoError(t, Scale(t.Context(), target, 0), "what is not there has no pods")
	require.ErrorIs(t, Scale(t.Context(), target, 1), ErrNotReady)
	require.ErrorIs(t, Scale(t.Context(), target, -1), ErrInvalid)
	target.Colour = "red"
	require.ErrorIs(t, Scale(t.Context(), target, 0), ErrInvalid)
}

func TestRunReplacesALeftover(t *testing.T) {
	client := fake.NewClientset(serviceOf("digits", Blue))
	controllers(t, client, ready)
	o := good()
	o.Client, o.Timeout = client, 20*time.Second
	o.Env, o.NodeSelector, o.MaxUnavailable = map[string]string{"OLD": "1"}, map[string]string{"old": "yes"}, 1
	_, err := Run(t.Context(), o)
	require.NoError(t, err)
	_, err = client.PolicyV1().PodDisruptionBudgets("team").Get(t.Context(), "digits-green", metav1.GetOptions{})
	require.NoError(t, err)
	o.Release, o.Version, o.Env, o.NodeSelector, o.MaxUnavailable = "r2", "v1.5.0-3f2a1ca", nil, nil, 0
	result, err := Run(t.Context(), o)
	require.NoError(t, err)
	require.True(t, result.Replaced)
	d, err := client.AppsV1().Deployments("team").Get(t.Context(), "digits-green", metav1.GetOptions{})
	require.NoError(t, err)
	require.Empty(t, d.Spec.Template.Spec.NodeSelector)
	for _, e := range d.Spec.Template.Spec.Containers[0].Env {
		require.NotEqual(t, "OLD", e.Name)
	}
	require.Equal(t, "r2", d.Annotations[AnnotationRelease])
	_, err = client.PolicyV1().PodDisruptionBudgets("team").Get(t.Context(), "digits-green", metav1.GetOptions{})
	require.True(t, apierrors.IsNotFound(err))
}

func TestRunReplacesWhatSomebodyElseChanged(t *testing.T) {
	client := fake.NewClientset(serviceOf("digits", Blue))
	controllers(t, client, ready)
	o := good()
	o.Client, o.Timeout = client, 20*time.Second
	_, err := Run(t.Context(), o)
	require.NoError(t, err)
	d, err := client.AppsV1().Deployments("team").Get(t.Context(), "digits-green", metav1.GetOptions{})
	require.NoError(t, err)
	d.Spec.Template.Spec.HostNetwork = true
	d.ManagedFields = append(d.ManagedFields, metav1.ManagedFieldsEntry{
		Manager: "kubectl-edit", Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: "apps/v1", FieldsType: "FieldsV1",
		FieldsV1: metav1.NewFieldsV1(`{"f:spec":{"f:template":{"f:spec":{"f:hostNetwork":{}}}}}`),
	})
	require.Equal(t, "kubectl-edit has changed its spec", changedBy(d))
	_, err = client.AppsV1().Deployments("team").Update(t.Context(), d, metav1.UpdateOptions{FieldManager: "kubectl-edit"})
	require.NoError(t, err)
	o.Release = "r2"
	result, err := Run(t.Context(), o)
	require.NoError(t, err)
	require.True(t, result.Replaced)
	d, err = client.AppsV1().Deployments("team").Get(t.Context(), "digits-green", metav1.GetOptions{})
	require.NoError(t, err)
	require.False(t, d.Spec.Template.Spec.HostNetwork)
}

func TestRunSaysWhyNotReady(t *testing.T) {
	client := fake.NewClientset(serviceOf("digits", Blue))
	controllers(t, client, waiting("ErrImagePull", "manifest unknown"))
	o := good()
	o.Client, o.Timeout = client, time.Minute
	started := time.Now()
	_, err := Run(t.Context(), o)
	require.ErrorIs(t, err, ErrNotReady)
	require.ErrorContains(t, err, "team/digits-green: 0 of 1 pods ready after")
	require.ErrorContains(t, err, "manifest unknown")
	require.Less(t, time.Since(started), 10*time.Second, "it does not wait for what will not come")
	_, err = client.CoreV1().Services("team").Get(t.Context(), "digits-preview", metav1.GetOptions{})
	require.True(t, apierrors.IsNotFound(err), "the preview does not lead to pods that are not ready")
}

func TestRunGivesUpAtTheDeadline(t *testing.T) {
	client := fake.NewClientset()
	controllers(t, client)
	o := good()
	o.Client, o.Timeout = client, 1500*time.Millisecond
	_, err := Run(t.Context(), o)
	require.ErrorIs(t, err, ErrNotReady)
	require.ErrorContains(t, err, "running, but not ready")
	require.ErrorContains(t, err, "the last line of its log: fake logs")
}

func TestRunStopsWithItsContext(t *testing.T) {
	client := fake.NewClientset()
	o := good()
	o.Client = client
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := Run(ctx, o)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestRunTellsThatItMayNotWatch(t *testing.T) {
	client := fake.NewClientset()
	client.PrependReactor("list", "pods", func(k8stesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewForbidden(corev1.Resource("pods"), "", nil)
	})
	o := good()
	o.Client, o.Timeout = client, 20*time.Second
	started := time.Now()
	_, err := Run(t.Context(), o)
	require.ErrorContains(t, err, "pods")
	require.ErrorContains(t, err, "forbidden")
	require.Less(t, time.Since(started), 10*time.Second)
}

func TestForeignObjectsAreLeftAlone(t *testing.T) {
	foreign := metav1.ObjectMeta{Namespace: "team", Labels: map[string]string{LabelManagedBy: "Helm"}}
	named := func(name string) metav1.ObjectMeta {
		m := foreign.DeepCopy()
		m.Name = name
		return *m
	}
	sibling := named("digits-green")
	sibling.Labels = map[string]string{LabelManagedBy: Manager, LabelService: "digits-green"}
	edited := serviceOf("digits", Blue)
	edited.Spec.Selector = map[string]string{"app": "x"}
	for name, c := range map[string]struct {
		object runtime.Object
		want   string
	}{
		"deployment":            {&appsv1.Deployment{ObjectMeta: named("digits-green")}, "deployment team/digits-green exists and was not made by greenlight"},
		"deployment of another": {&appsv1.Deployment{ObjectMeta: sibling}, `belongs to the service "digits-green"`},
		"live service":          {&corev1.Service{ObjectMeta: named("digits")}, "service team/digits exists"},
		"preview service":       {&corev1.Service{ObjectMeta: named("digits-preview")}, "service team/digits-preview exists"},
		"service account":       {&corev1.ServiceAccount{ObjectMeta: named("digits")}, "service account team/digits exists"},
		"edited selector":       {edited, "selects app=x, not one colour"},
	} {
		t.Run(name, func(t *testing.T) {
			client := fake.NewClientset(c.object)
			controllers(t, client, ready)
			o := good()
			o.Client, o.Timeout = client, 10*time.Second
			_, err := Run(t.Context(), o)
			require.ErrorIs(t, err, ErrForeign)
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestLiveServiceNeedsAReadyPod(t *testing.T) {
	client := fake.NewClientset()
	o := good()
	o.Client = client
	_, err := EnsureLiveService(t.Context(), o)
	require.ErrorIs(t, err, ErrNotReady)
	_, err = client.CoreV1().Services("team").Get(t.Context(), "digits", metav1.GetOptions{})
	require.True(t, apierrors.IsNotFound(err))
}
