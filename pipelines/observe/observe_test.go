package observe

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"
)

// steady is a data path on which every sample looks alike.
type steady struct {
	// each is what a sample adds.
	each Sample
	// ends says that the observer stops after one sample.
	ends bool
	err  error
}

func (s steady) Observe(ctx context.Context) (<-chan Sample, error) {
	if s.err != nil {
		return nil, s.err
	}
	samples := make(chan Sample)
	go func() {
		defer close(samples)
		for n := 1; ctx.Err() == nil && !(s.ends && n > 1); n++ {
			sum := Sample{Requests: n * s.each.Requests, Failed: n * s.each.Failed, Failure: s.each.Failure, Fresh: map[string]int{}, Kept: map[string]int{}}
			for c, k := range s.each.Fresh {
				sum.Fresh[c] = n * k
			}
			for c, k := range s.each.Kept {
				sum.Kept[c] = n * k
			}
			select {
			case samples <- sum:
			case <-ctx.Done():
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	return samples, nil
}

func objects() (*corev1.Service, *appsv1.Deployment, *corev1.Pod, *corev1.Pod) {
	labels := map[string]string{labelService: "digits", labelColour: "green"}
	n := int32(2)
	pod := func(name string) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: name, UID: types.UID(name), Labels: labels},
			Status: corev1.PodStatus{
				Conditions:        []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
				ContainerStatuses: []corev1.ContainerStatus{{Name: "service", RestartCount: 3, Ready: true}},
			},
		}
	}
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: "digits"}, Spec: corev1.ServiceSpec{Selector: labels}},
		&appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: "digits-green"}, Spec: appsv1.DeploymentSpec{Replicas: &n}},
		pod("a"), pod("b")
}

// firstLook is a log that tells when the watch has its baseline: only what changes afterwards counts.
type firstLook struct {
	once sync.Once
	seen chan struct{}
}

func (l *firstLook) Write(p []byte) (int, error) {
	l.once.Do(func() { close(l.seen) })
	return len(p), nil
}

func TestRun(t *testing.T) {
	fine := steady{each: Sample{Requests: 2, Fresh: map[string]int{"green": 1}, Kept: map[string]int{"blue": 1}}}
	type cluster struct {
		*fake.Clientset
		t *testing.T
	}
	changePod := func(change func(*corev1.Pod), names ...string) func(cluster) {
		return func(c cluster) {
			for _, name := range names {
				p, err := c.CoreV1().Pods("team").Get(c.t.Context(), name, metav1.GetOptions{})
				require.NoError(c.t, err)
				change(p)
				// The fake API server loses what happens between an informer's list and its watch, so it is said again.
				for range 4 {
					_, err = c.CoreV1().Pods("team").UpdateStatus(c.t.Context(), p, metav1.UpdateOptions{})
					require.NoError(c.t, err)
					time.Sleep(200 * time.Millisecond)
				}
			}
		}
	}
	unready := func(p *corev1.Pod) { p.Status.Conditions[0].Status = corev1.ConditionFalse }
	for name, c := range map[string]struct {
		observer Observer
		during   func(cluster)
		change   func(*Options)
		reason   string
		check    func(*testing.T, Result)
	}{
		"bears it": {observer: fine, check: func(t *testing.T, r Result) {
			require.True(t, r.Passed)
			require.Positive(t, r.Requests)
			require.Zero(t, r.Failed)
			require.Zero(t, r.Restarts, "restarts of before do not count")
			require.Equal(t, 2, r.MinReady)
			require.Equal(t, 2, r.Wanted)
			require.Positive(t, r.Answers["green"])
			require.Positive(t, r.Answers["blue"], "kept connections may stay")
		}},
		"without an observer":           {},
		"one request fails":             {observer: steady{each: Sample{Requests: 50, Failed: 1, Failure: "503"}}, reason: "requests failed, none may: 503"},
		"few fail":                      {observer: steady{each: Sample{Requests: 200, Failed: 1, Fresh: map[string]int{"green": 199}}}, change: func(o *Options) { o.MaxFailed = 0.01 }},
		"too many fail":                 {observer: steady{each: Sample{Requests: 200, Failed: 5, Failure: "503"}}, change: func(o *Options) { o.MaxFailed = 0.01 }, reason: "requests failed, 1 % may: 503"},
		"other colour":                  {observer: steady{each: Sample{Requests: 2, Fresh: map[string]int{"green": 1, "blue": 1}}}, change: func(o *Options) { o.StrayGrace = 200 * time.Millisecond }, reason: "new connections were answered by blue, which is not live"},
		"other colour in the beginning": {observer: steady{each: Sample{Requests: 2, Fresh: map[string]int{"green": 1, "blue": 1}}}},
		"silence":                       {observer: steady{}, change: func(o *Options) { o.SilenceLimit = 300 * time.Millisecond }, reason: "has reported no request for 300ms"},
		"observer ends":                 {observer: steady{each: Sample{Requests: 1}, ends: true}, reason: "observer of the live service stopped"},
		"restart": {observer: fine, reason: "container service of pod a was restarted (OOMKilled, exit code 137)", during: changePod(func(p *corev1.Pod) {
			p.Status.ContainerStatuses[0].RestartCount = 4
			p.Status.ContainerStatuses[0].LastTerminationState.Terminated = &corev1.ContainerStateTerminated{Reason: "OOMKilled", ExitCode: 137}
		}, "a"), check: func(t *testing.T, r Result) { require.Equal(t, 1, r.Restarts) }},
		"restart that may be": {observer: fine, change: func(o *Options) { o.MaxRestarts = 1 }, during: changePod(func(p *corev1.Pod) { p.Status.ContainerStatuses[0].RestartCount = 4 }, "a")},
		"one pod unready for a moment": {observer: fine, during: func(c cluster) {
			changePod(unready, "a")(c)
			time.Sleep(100 * time.Millisecond)
			changePod(func(p *corev1.Pod) { p.Status.Conditions[0].Status = corev1.ConditionTrue }, "a")(c)
		}, check: func(t *testing.T, r Result) {
			require.Equal(t, 1, r.MinReady)
			require.Equal(t, 2, r.ReadyChanges)
		}},
		"one pod unready for long":   {observer: fine, change: func(o *Options) { o.UnreadyGrace = 300 * time.Millisecond }, during: changePod(unready, "a"), reason: "1 of 2 pods have been ready for more than 300ms"},
		"one pod unready at the end": {observer: fine, during: changePod(unready, "a"), reason: "1 of 2 pods are ready at the end"},
		"no pod ready":               {observer: fine, during: changePod(unready, "a", "b"), reason: "no pod is ready"},
		"service moved": {observer: fine, reason: "somebody has changed the selector", during: func(c cluster) {
			s, err := c.CoreV1().Services("team").Get(c.t.Context(), "digits", metav1.GetOptions{})
			require.NoError(c.t, err)
			s.Spec.Selector[labelColour] = "blue"
			_, err = c.CoreV1().Services("team").Update(c.t.Context(), s, metav1.UpdateOptions{})
			require.NoError(c.t, err)
		}},
		"service gone": {observer: fine, reason: "live service team/digits is gone", during: func(c cluster) {
			require.NoError(c.t, c.CoreV1().Services("team").Delete(c.t.Context(), "digits", metav1.DeleteOptions{}))
		}},
		"deployment gone": {observer: fine, reason: "deployment team/digits-green is gone", during: func(c cluster) {
			require.NoError(c.t, c.AppsV1().Deployments("team").Delete(c.t.Context(), "digits-green", metav1.DeleteOptions{}))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			service, deployment, a, b := objects()
			client := fake.NewClientset(service, deployment, a, b)
			o := Options{Client: client, Observer: c.observer, Namespace: "team", Service: "digits", Colour: "green", Duration: 4 * time.Second}
			if c.reason != "" && name != "one pod unready at the end" {
				// A no comes early.
				o.Duration = 20 * time.Second
			}
			if c.change != nil {
				c.change(&o)
			}
			look := &firstLook{seen: make(chan struct{})}
			o.Log = look
			changed, ended := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(changed)
				if c.during != nil {
					select {
					case <-look.seen:
					case <-ended:
						t.Error("the watch ended before it had looked at the pods once")
						return
					}
					time.Sleep(500 * time.Millisecond)
					c.during(cluster{client, t})
				}
			}()
			r, err := Run(t.Context(), o)
			close(ended)
			<-changed
			require.Equal(t, c.reason == "", r.Passed, "%s, %v", r.Reason, err)
			if c.reason == "" {
				require.NoError(t, err)
			} else {
				require.ErrorIs(t, err, ErrUnhealthy)
				require.ErrorContains(t, err, c.reason)
				require.Contains(t, r.Reason, c.reason)
				require.Less(t, r.Seconds, 10.0)
			}
			if c.check != nil {
				c.check(t, r)
			}
		})
	}
}

func TestRunWithoutItsMeans(t *testing.T) {
	service, deployment, a, b := objects()
	client := fake.NewClientset(service, deployment, a, b)
	o := Options{Client: client, Namespace: "team", Service: "digits", Colour: "green"}
	bad := o
	bad.Client = nil
	_, err := Run(t.Context(), bad)
	require.ErrorIs(t, err, ErrInvalid)
	bad = o
	bad.MaxFailed = 3
	_, err = Run(t.Context(), bad)
	require.ErrorIs(t, err, ErrInvalid)
	bad = o
	bad.Observer = steady{err: errors.New("no probe image")}
	_, err = Run(t.Context(), bad)
	require.ErrorContains(t, err, "no probe image")
	require.NotErrorIs(t, err, ErrUnhealthy)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = Run(ctx, o)
	require.ErrorIs(t, err, context.Canceled)

	// A client of its own: the last run's informers may still be ending.
	broken := fake.NewClientset(service, deployment, a, b)
	broken.PrependReactor("list", "pods", func(k8stesting.Action) (bool, runtime.Object, error) {
		return true, nil, errors.New("server on fire")
	})
	o.Client, o.SilenceLimit = broken, 300*time.Millisecond
	_, err = Run(t.Context(), o)
	require.ErrorIs(t, err, ErrUnhealthy)
	require.ErrorContains(t, err, "server on fire")
}
