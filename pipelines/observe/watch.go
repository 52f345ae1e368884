package observe

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

const (
	labelService = "greenlight.dev/service"
	labelColour  = "greenlight.dev/colour"
)

// view is what the cluster has of the live colour at one instant.
type view struct {
	pods []*corev1.Pod
	// deployment and service are nil when they do not exist.
	deployment *appsv1.Deployment
	service    *corev1.Service
	// trouble is what stands in the way of watching. The rest is then what was seen last, if synced.
	trouble error
	synced  bool
}

// lookout keeps local copies of the colour's objects.
type lookout struct {
	o       Options
	running sync.WaitGroup
	changed chan struct{}

	mu sync.Mutex
	// troubles are the last failed requests to the API server by what was asked for, until they work.
	troubles map[string]error
}

func (o Options) selector() map[string]string {
	return map[string]string{labelService: o.Service, labelColour: o.Colour}
}

func (o Options) deploymentName() string { return o.Service + "-" + o.Colour }

// watchPods delivers a view with every change, and once a second, until ctx ends; then it closes the second channel.
func (o Options) watchPods(ctx context.Context) (<-chan view, <-chan struct{}) {
	l := &lookout{o: o, changed: make(chan struct{}, 1), troubles: map[string]error{}}
	views, stopped := make(chan view), make(chan struct{})
	named := func(name string) func(*metav1.ListOptions) {
		return func(lo *metav1.ListOptions) {
			lo.FieldSelector = fields.OneTermEqualSelector("metadata.name", name).String()
		}
	}
	pods := inform(ctx, l, &corev1.Pod{}, o.Client.CoreV1().Pods(o.Namespace), func(lo *metav1.ListOptions) {
		lo.LabelSelector = labels.SelectorFromSet(o.selector()).String()
	})
	deployments := inform(ctx, l, &appsv1.Deployment{}, o.Client.AppsV1().Deployments(o.Namespace), named(o.deploymentName()))
	services := inform(ctx, l, &corev1.Service{}, o.Client.CoreV1().Services(o.Namespace), named(o.Service))

	snapshot := func() view {
		v := view{trouble: l.trouble(), synced: pods.HasSynced() && deployments.HasSynced() && services.HasSynced()}
		for _, object := range pods.GetStore().List() {
			if p, ok := object.(*corev1.Pod); ok {
				v.pods = append(v.pods, p)
			}
		}
		if object, ok, err := deployments.GetStore().GetByKey(o.Namespace + "/" + o.deploymentName()); ok && err == nil {
			v.deployment, _ = object.(*appsv1.Deployment)
		}
		if object, ok, err := services.GetStore().GetByKey(o.Namespace + "/" + o.Service); ok && err == nil {
			v.service, _ = object.(*corev1.Service)
		}
		return v
	}
	go func() {
		defer close(stopped)
		defer l.running.Wait()
		ticker := time.NewTicker(time.Second)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-l.changed:
			case <-ticker.C:
			}
			select {
			case <-ctx.Done():
				return
			case views <- snapshot():
			}
		}
	}()
	return views, stopped
}

// source is what a typed client of one kind has.
type source[L runtime.Object] interface {
	List(context.Context, metav1.ListOptions) (L, error)
	Watch(context.Context, metav1.ListOptions) (watch.Interface, error)
}

// inform keeps a local copy of what s lists within the limit until ctx ends.
func inform[L runtime.Object](ctx context.Context, l *lookout, kind runtime.Object, s source[L], limit func(*metav1.ListOptions)) cache.SharedIndexInformer {
	key := fmt.Sprintf("%T", kind)
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, lo metav1.ListOptions) (runtime.Object, error) {
			limit(&lo)
			list, err := s.List(ctx, lo)
			l.note(key, err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, lo metav1.ListOptions) (watch.Interface, error) {
			limit(&lo)
			w, err := s.Watch(ctx, lo)
			l.note(key, err)
			return w, err
		},
	}
	informer := cache.NewSharedIndexInformer(cache.ToListWatcherWithWatchListSemantics(lw, l.o.Client), kind, 0, cache.Indexers{})
	// Neither call fails before the informer has been started. The default error handler would write to the log of the
	// process.
	_, _ = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { l.wake() },
		UpdateFunc: func(any, any) { l.wake() },
		DeleteFunc: func(any) { l.wake() },
	})
	_ = informer.SetWatchErrorHandlerWithContext(func(context.Context, *cache.Reflector, error) {})
	l.running.Go(func() { informer.RunWithContext(ctx) })
	return informer
}

func (l *lookout) wake() {
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

// note remembers whether the last request of a kind worked.
func (l *lookout) note(kind string, err error) {
	l.mu.Lock()
	l.troubles[kind] = err
	l.mu.Unlock()
	if err != nil {
		l.wake()
	}
}

func (l *lookout) trouble() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, kind := range slices.Sorted(maps.Keys(l.troubles)) {
		if err := l.troubles[kind]; err != nil {
			return err
		}
	}
	return nil
}
