package traffic

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"
)

func liveService(colour string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: "digits", UID: "u", ResourceVersion: "7", Labels: map[string]string{labelManagedBy: manager, labelService: "digits"}},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{labelService: "digits", labelColour: colour}},
	}
}

func pod(name, colour string, ready corev1.ConditionStatus) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: name, Labels: map[string]string{labelManagedBy: manager, labelService: "digits", labelColour: colour}},
		Status:     corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}},
	}
}

func stopping(p *corev1.Pod) *corev1.Pod {
	p.DeletionTimestamp, p.Finalizers = &metav1.Time{Time: time.Now()}, []string{"test/hold"}
	return p
}

func router(t *testing.T, minReady int, objects ...runtime.Object) (Router, *fake.Clientset) {
	t.Helper()
	client := fake.NewClientset(objects...)
	r, err := New("service", Settings{Client: client, Namespace: "team", Service: "digits", MinReady: minReady})
	require.NoError(t, err)
	return r, client
}

func selector(t *testing.T, client *fake.Clientset) string {
	t.Helper()
	svc, err := client.CoreV1().Services("team").Get(t.Context(), "digits", metav1.GetOptions{})
	require.NoError(t, err)
	return svc.Spec.Selector[labelColour]
}

func TestNew(t *testing.T) {
	_, err := New("carrier-pigeon", Settings{})
	require.ErrorIs(t, err, ErrInvalid)
	require.ErrorContains(t, err, "there is: service")
	_, err = New("service", Settings{Namespace: "team"})
	require.ErrorIs(t, err, ErrInvalid)
}

func TestShift(t *testing.T) {
	foreign := liveService(blue)
	foreign.Labels = nil
	edited := liveService(blue)
	edited.Spec.Selector = map[string]string{"app": "digits"}
	wide := liveService(blue)
	wide.Spec.Selector = map[string]string{labelService: "digits"}
	intruder := pod("x", green, corev1.ConditionTrue)
	delete(intruder.Labels, labelManagedBy)
	up := corev1.ConditionTrue
	for name, c := range map[string]struct {
		objects  []runtime.Object
		minReady int
		to       Weights
		want     error
		text     string
	}{
		"ready":             {objects: []runtime.Object{liveService(blue), pod("g", green, up)}},
		"no service":        {objects: []runtime.Object{pod("g", green, up)}, want: ErrRefused, text: "no live service"},
		"no pod":            {objects: []runtime.Object{liveService(blue), pod("b", blue, up)}, want: ErrRefused, text: "0 ready pods of the 1"},
		"not ready":         {objects: []runtime.Object{liveService(blue), pod("g", green, corev1.ConditionFalse)}, want: ErrRefused, text: "0 ready pods"},
		"on its way out":    {objects: []runtime.Object{liveService(blue), stopping(pod("g", green, up))}, want: ErrRefused, text: "0 ready pods"},
		"too few":           {objects: []runtime.Object{liveService(blue), pod("g", green, up)}, minReady: 2, want: ErrRefused, text: "1 ready pods of the 2"},
		"foreign service":   {objects: []runtime.Object{foreign, pod("g", green, up)}, want: ErrRefused, text: "not made by greenlight"},
		"edited selector":   {objects: []runtime.Object{edited, pod("g", green, up)}, want: ErrRefused, text: "selects app=digits"},
		"selector too wide": {objects: []runtime.Object{wide, pod("g", green, up)}, want: ErrRefused, text: "not one colour"},
		"foreign pod":       {objects: []runtime.Object{liveService(blue), pod("g", green, up), intruder}, want: ErrRefused, text: "not greenlight's: x"},
		"there already":     {objects: []runtime.Object{liveService(green)}},
		"part of it":        {objects: []runtime.Object{liveService(blue), pod("g", green, up)}, to: Weights{blue: 50, green: 50}, want: ErrUnsupported},
		"unknown colour":    {objects: []runtime.Object{liveService(blue)}, to: Weights{"red": 100}, want: ErrInvalid},
		"nobody":            {objects: []runtime.Object{liveService(blue)}, to: Weights{blue: 0}, want: ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			r, client := router(t, c.minReady, c.objects...)
			to := c.to
			if to == nil {
				to = Weights{green: 100, blue: 0}
			}
			err := r.Shift(t.Context(), to)
			if c.want == nil {
				require.NoError(t, err)
				require.Equal(t, green, selector(t, client))
				w, err := r.Weights(t.Context())
				require.NoError(t, err)
				require.Equal(t, Weights{green: 100, blue: 0}, w)
				return
			}
			require.ErrorIs(t, err, c.want)
			require.ErrorContains(t, err, c.text)
			for _, a := range client.Actions() {
				require.NotEqual(t, "patch", a.GetVerb(), "nothing is written")
			}
		})
	}
}

func TestShiftLooksAtThePodsLast(t *testing.T) {
	r, client := router(t, 1, liveService(blue), pod("g", green, corev1.ConditionTrue))
	require.NoError(t, r.Shift(t.Context(), Weights{green: 100}))
	var order []string
	for _, a := range client.Actions() {
		order = append(order, a.GetVerb()+" "+a.GetResource().Resource)
		if p, ok := a.(k8stesting.PatchAction); ok {
			require.JSONEq(t, `{"metadata":{"uid":"u","resourceVersion":"7"},"spec":{"selector":{"greenlight.dev/service":"digits","greenlight.dev/colour":"green"}}}`, string(p.GetPatch()))
		}
	}
	require.Equal(t, []string{"get services", "list pods", "patch services"}, order)
}

func TestShiftLooksAgainAfterAConflict(t *testing.T) {
	conflicts := 0
	r, client := router(t, 1, liveService(blue), pod("g", green, corev1.ConditionTrue))
	client.PrependReactor("patch", "services", func(k8stesting.Action) (bool, runtime.Object, error) {
		if conflicts++; conflicts > 2 {
			return false, nil, nil
		}
		return true, nil, apierrors.NewConflict(corev1.Resource("services"), "digits", errors.New("changed"))
	})
	require.NoError(t, r.Shift(t.Context(), Weights{green: 100}))
	require.Equal(t, green, selector(t, client))
	looks := 0
	for _, a := range client.Actions() {
		if a.GetVerb() == "list" {
			looks++
		}
	}
	require.Equal(t, 3, looks, "the pods are looked at before every attempt")

	client.PrependReactor("patch", "services", func(k8stesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewConflict(corev1.Resource("services"), "digits", errors.New("changed"))
	})
	_, err := client.CoreV1().Pods("team").Create(t.Context(), pod("b", blue, corev1.ConditionTrue), metav1.CreateOptions{})
	require.NoError(t, err)
	require.ErrorIs(t, r.Shift(t.Context(), Weights{blue: 100}), ErrRefused)
}

// path is a data path that follows the live Service after a while.
type path struct {
	client *fake.Clientset
	// lag is how long the data path is behind the API server, or forever.
	lag     time.Duration
	forever bool
	// fails says that every request after the switch fails.
	fails bool
	// mute: nothing is ever seen; stops: the observer ends after the switch.
	mute, stops bool
}

func (p path) Observe(ctx context.Context) (<-chan Sample, error) {
	samples := make(chan Sample)
	go func() {
		defer close(samples)
		s := Sample{}
		var switched time.Time
		before := ""
		for ctx.Err() == nil {
			svc, err := p.client.CoreV1().Services("team").Get(ctx, "digits", metav1.GetOptions{})
			if err != nil {
				return
			}
			colour := svc.Spec.Selector[labelColour]
			if before == "" {
				before = colour
			}
			if colour != before && switched.IsZero() {
				switched = time.Now()
			}
			moved := !switched.IsZero()
			if moved && p.stops {
				return
			}
			n := Sample{Requests: s.Requests, Failed: s.Failed, Fresh: map[string]int{}, Kept: map[string]int{}}
			for k, v := range s.Fresh {
				n.Fresh[k] = v
			}
			for k, v := range s.Kept {
				n.Kept[k] = v
			}
			if !p.mute {
				n.Requests += 2
				switch {
				case moved && p.fails:
					n.Failed += 2
					n.Failure = "connection refused"
				case !moved, p.forever, time.Since(switched) < p.lag:
					n.Fresh[before]++
					n.Kept[before]++
				default:
					n.Fresh[colour]++
					n.Kept[before]++
				}
			}
			s = n
			select {
			case samples <- s:
			case <-ctx.Done():
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	return samples, nil
}

func TestRun(t *testing.T) {
	for name, c := range map[string]struct {
		path  path
		want  error
		text  string
		moved bool
	}{
		"follows":               {path: path{lag: 100 * time.Millisecond}, moved: true},
		"never follows":         {path: path{forever: true}, want: ErrUnconfirmed, text: "blue answered", moved: true},
		"fails":                 {path: path{fails: true}, want: ErrUnconfirmed, text: "requests in a row failed: connection refused", moved: true},
		"nothing is seen":       {path: path{mute: true}, want: ErrRefused, text: "saw nothing within"},
		"observer stops midway": {path: path{stops: true}, want: ErrUnconfirmed, text: "observer stopped", moved: true},
	} {
		t.Run(name, func(t *testing.T) {
			r, client := router(t, 1, liveService(blue), pod("g", green, corev1.ConditionTrue))
			c.path.client = client
			var log bytes.Buffer
			result, err := Run(t.Context(), Options{
				Router: r, Observer: c.path, From: blue, To: green, Timeout: time.Second, Settle: 100 * time.Millisecond, Quorum: 5, GiveUpAfter: 300 * time.Millisecond, Log: &log,
			})
			require.Equal(t, c.moved, result.Moved)
			if c.want != nil {
				require.ErrorIs(t, err, c.want)
				require.ErrorContains(t, err, c.text)
				require.False(t, result.Confirmed)
				require.Equal(t, c.moved, selector(t, client) == green)
				return
			}
			require.NoError(t, err)
			require.True(t, result.Confirmed)
			require.Zero(t, result.Failed)
			require.Positive(t, result.Requests)
			require.Positive(t, result.KeptOnFrom)
			require.InDelta(t, 0.1, result.Seconds, 0.15)
		})
	}
}

func TestRunRefusesWhatItDoesNotKnow(t *testing.T) {
	r, _ := router(t, 1)
	_, err := Run(t.Context(), Options{Router: r, Observer: path{}, From: blue, To: green})
	require.ErrorIs(t, err, ErrRefused)
	_, err = Run(t.Context(), Options{Router: r, Observer: path{}, From: blue, To: blue})
	require.ErrorIs(t, err, ErrInvalid)
	_, err = Run(t.Context(), Options{})
	require.ErrorIs(t, err, ErrInvalid)
}
