package deploy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// waiter waits for one colour. It watches rather than polls: a model that loads for minutes costs no requests.
type waiter struct {
	o Options
	// deployment is what was written; the wait is for its generation.
	deployment *appsv1.Deployment
	// events returns a pod's events, oldest first. Cached for a while, since it is asked for on every look.
	events func(context.Context, *corev1.Pod) []corev1.Event
	// lastLine returns the last line that a container wrote.
	lastLine func(ctx context.Context, p *corev1.Pod, container string, previous bool) string
	// since remembers when a pod was first seen in a state that is given some time.
	since map[string]time.Time
	now   func() time.Time
}

// view is the colour at one instant.
type view struct {
	// deployment is nil when there is none.
	deployment *appsv1.Deployment
	pods       []*corev1.Pod
}

func (o Options) waiter(d *appsv1.Deployment) *waiter {
	reader := &podReader{client: o.Client, listed: map[string]listedEvents{}}
	return &waiter{
		o: o, deployment: d, since: map[string]time.Time{}, now: time.Now,
		events: reader.events, lastLine: reader.lastLine,
	}
}

// wait returns how many pods are ready, with an error that wraps ErrNotReady unless that is all of them.
func (w *waiter) wait(ctx context.Context) (ready int32, err error) {
	started := w.now()
	last := ""
	var now verdict
	err = w.o.watch(ctx, w.o.Timeout, func(ctx context.Context, v view) (bool, error) {
		now = w.judge(ctx, v)
		if line := now.line(); line != last {
			fmt.Fprintf(w.o.Log, "%s: %s\n", w.o.Colour, line)
			last = line
		}
		if now.hopeless {
			return true, w.fail(now, started, "")
		}
		return now.done, nil
	})
	switch {
	case err == nil, errors.Is(err, ErrNotReady):
		return now.ready, err
	case errors.Is(err, errDeadline):
		also := reachability(err)
		if also == "" && now.silent != nil {
			if line := w.lastLine(ctx, now.silent, now.in, false); line != "" {
				also = "the last line of its log: " + line
			}
		}
		return now.ready, w.fail(now, started, also)
	default:
		return now.ready, err
	}
}

func (w *waiter) fail(v verdict, started time.Time, also string) error {
	name := w.o.Namespace + "/" + DeploymentName(w.o.Service, w.o.Colour)
	reason := v.reason
	if reason == "" {
		reason = "nothing was seen of it"
	}
	if also != "" {
		reason += "; " + also
	}
	return fmt.Errorf("%w: %s: %d of %d pods ready after %s: %s",
		ErrNotReady, name, v.ready, v.wanted, w.now().Sub(started).Round(time.Second), reason)
}

// waitGone waits until the colour has no pod left.
func (o Options) waitGone(ctx context.Context) error {
	left := 0
	err := o.watch(ctx, o.Timeout, func(_ context.Context, v view) (bool, error) {
		left = len(v.pods)
		return left == 0, nil
	})
	if err != nil {
		return fmt.Errorf("waiting for the pods of %s/%s to go (%d left): %w", o.Namespace, DeploymentName(o.Service, o.Colour), left, err)
	}
	return nil
}

// errDeadline is wrapped by watch when the time is up.
var errDeadline = errors.New("deadline")

// reachability says what stood in the way of watching, or "".
func reachability(err error) string {
	var w *watchError
	if errors.As(err, &w) && w.last != nil {
		return "the API server could not be watched: " + oneLine(w.last.Error())
	}
	return ""
}

// watchError is a deadline, with what went wrong last on the way.
type watchError struct {
	after time.Duration
	last  error
}

func (e *watchError) Error() string {
	if e.last != nil {
		return fmt.Sprintf("not after %s; watching failed: %s", e.after, oneLine(e.last.Error()))
	}
	return fmt.Sprintf("not after %s", e.after)
}

func (e *watchError) Unwrap() error { return errDeadline }

// watch calls look with every change of the colour, and once a second, until look is done, the time is up (errDeadline)
// or the API server says that watching is not allowed.
func (o Options) watch(ctx context.Context, timeout time.Duration, look func(context.Context, view) (bool, error)) error {
	limited, cancel := context.WithTimeout(ctx, timeout)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()

	changed := make(chan struct{}, 1)
	trouble := &troubles{byKind: map[string]error{}}
	name := DeploymentName(o.Service, o.Colour)
	deploymentStore := inform(limited, o, &running, changed, trouble, &appsv1.Deployment{}, o.Client.AppsV1().Deployments(o.Namespace), func(lo *metav1.ListOptions) {
		lo.FieldSelector = fields.OneTermEqualSelector("metadata.name", name).String()
	})
	podStore := inform(limited, o, &running, changed, trouble, &corev1.Pod{}, o.Client.CoreV1().Pods(o.Namespace), func(lo *metav1.ListOptions) {
		lo.LabelSelector = labels.SelectorFromSet(Selector(o.Service, o.Colour)).String()
	})

	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		if deploymentStore.HasSynced() && podStore.HasSynced() {
			done, err := look(limited, snapshot(deploymentStore.GetStore(), podStore.GetStore(), o.Namespace+"/"+name))
			if done || err != nil {
				return err
			}
		}
		if err := trouble.fatal(); err != nil {
			return fmt.Errorf("watching %s/%s: %w", o.Namespace, name, err)
		}
		select {
		case <-limited.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return &watchError{timeout, trouble.get()}
		case <-changed:
		case <-ticker.C:
		}
	}
}

func snapshot(deployments, pods cache.Store, key string) view {
	var v view
	if found, ok, err := deployments.GetByKey(key); ok && err == nil {
		v.deployment, _ = found.(*appsv1.Deployment)
	}
	for _, object := range pods.List() {
		if p, ok := object.(*corev1.Pod); ok {
			v.pods = append(v.pods, p)
		}
	}
	return v
}

// source is what a typed client of one kind has.
type source[L runtime.Object] interface {
	List(context.Context, metav1.ListOptions) (L, error)
	Watch(context.Context, metav1.ListOptions) (watch.Interface, error)
}

// inform keeps a local copy of what s lists within the limit until ctx ends.
func inform[L runtime.Object](ctx context.Context, o Options, running *sync.WaitGroup, changed chan<- struct{}, trouble *troubles,
	kind runtime.Object, s source[L], limit func(*metav1.ListOptions),
) cache.SharedIndexInformer {
	key := fmt.Sprintf("%T", kind)
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, lo metav1.ListOptions) (runtime.Object, error) {
			limit(&lo)
			list, err := s.List(ctx, lo)
			trouble.set(key, err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, lo metav1.ListOptions) (watch.Interface, error) {
			limit(&lo)
			w, err := s.Watch(ctx, lo)
			trouble.set(key, err)
			return w, err
		},
	}
	informer := cache.NewSharedIndexInformer(cache.ToListWatcherWithWatchListSemantics(lw, o.Client), kind, 0, cache.Indexers{})
	wake := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	// Neither call fails before the informer has been started. The default error handler would write to the log of the
	// process.
	_, _ = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { wake() },
		UpdateFunc: func(any, any) { wake() },
		DeleteFunc: func(any) { wake() },
	})
	_ = informer.SetWatchErrorHandlerWithContext(func(context.Context, *cache.Reflector, error) {})
	running.Go(func() { informer.RunWithContext(ctx) })
	return informer
}

// troubles are the last failed requests to the API server by what was asked for, until they work.
type troubles struct {
	mu     sync.Mutex
	byKind map[string]error
}

func (t *troubles) set(kind string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.byKind[kind] = err
}

func (t *troubles) get() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, kind := range slices.Sorted(maps.Keys(t.byKind)) {
		if err := t.byKind[kind]; err != nil {
			return err
		}
	}
	return nil
}

// fatal returns the trouble if waiting does not mend it.
func (t *troubles) fatal() error {
	if err := t.get(); apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) {
		return err
	}
	return nil
}
