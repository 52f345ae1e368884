package probe

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/greenlight-ci/greenlight/pipelines/probe/protocol"
)

// openLog opens a pod's log.
type openLog func(ctx context.Context, pod string, follow bool) (io.ReadCloser, error)

func podLog(options Options) openLog {
	return func(ctx context.Context, pod string, follow bool) (io.ReadCloser, error) {
		return options.Client.CoreV1().Pods(options.Namespace).GetLogs(pod, &corev1.PodLogOptions{Container: containerName, Follow: follow}).Stream(ctx)
	}
}

// follower watches the Job and its pods, and reads the log of every pod that has started.
type follower struct {
	session *Session
	open    openLog
	jobs    cache.Store
	pods    cache.Store
	changed chan struct{}
	readers sync.WaitGroup
	started time.Time
	pulling time.Time // when the image could not be pulled for the first time

	mu    sync.Mutex
	state map[types.UID]readerState
}

type readerState int

const (
	reading readerState = iota + 1
	read
)

// follow returns nil when the result is there, and otherwise why it will not come.
func follow(ctx context.Context, s *Session, open openLog) error {
	ctx, cancel := context.WithCancel(ctx)
	f := &follower{session: s, open: open, changed: make(chan struct{}, 1), started: time.Now(), state: make(map[types.UID]readerState)}
	defer f.readers.Wait()
	defer cancel()
	f.watch(ctx)
	// The clock's part: patience with a pull, and events of a Job that gets no pod.
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return f.gaveUp(ctx)
		case <-f.changed:
		case <-ticker.C:
		}
		if s.hasResult() {
			return nil
		}
		if err := f.step(ctx); err != nil {
			return err
		}
	}
}

func (f *follower) wake() {
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

// watch keeps the stores up to date; it lists again by itself when the API server goes away for a while.
func (f *follower) watch(ctx context.Context) {
	options := f.session.options
	handler := cache.ResourceEventHandlerFuncs{AddFunc: func(any) { f.wake() }, UpdateFunc: func(any, any) { f.wake() }, DeleteFunc: func(any) { f.wake() }}
	jobs, pods := options.Client.BatchV1().Jobs(options.Namespace), options.Client.CoreV1().Pods(options.Namespace)
	one := func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("metadata.name", f.session.name).String()
	}
	labelled := func(o *metav1.ListOptions) { o.LabelSelector = labelProbe + "=" + f.session.name }
	watching := func(lw *cache.ListWatch, kind runtime.Object) cache.Store {
		store, controller := cache.NewInformerWithOptions(cache.InformerOptions{
			ListerWatcher: cache.ToListWatcherWithWatchListSemantics(lw, options.Client), ObjectType: kind, Handler: handler,
		})
		f.readers.Go(func() { controller.RunWithContext(ctx) })
		return store
	}
	f.jobs = watching(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			one(&o)
			return jobs.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			one(&o)
			return jobs.Watch(ctx, o)
		},
	}, &batchv1.Job{})
	f.pods = watching(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			labelled(&o)
			return pods.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			labelled(&o)
			return pods.Watch(ctx, o)
		},
	}, &corev1.Pod{})
}

func (f *follower) podList() []*corev1.Pod {
	var pods []*corev1.Pod
	for _, object := range f.pods.List() {
		if pod, ok := object.(*corev1.Pod); ok {
			pods = append(pods, pod)
		}
	}
	slices.SortFunc(pods, func(a, b *corev1.Pod) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) })
	return pods
}

// step looks at what there is now. An error ends the session.
func (f *follower) step(ctx context.Context) error {
	pods := f.podList()
	for _, pod := range pods {
		if err := f.stepPod(ctx, pod); err != nil {
			return err
		}
	}
	if f.session.isStopped() {
		if f.allRead() && !slices.ContainsFunc(pods, func(pod *corev1.Pod) bool { return !ended(pod) }) {
			return fmt.Errorf("%w: it was stopped and left no result", ErrNotRun)
		}
		return nil
	}
	if len(pods) == 0 && time.Since(f.started) > 3*time.Second {
		if message := f.failedCreate(ctx); message != "" {
			return fmt.Errorf("%w: Kubernetes does not create the pod of Job %s: %s", ErrNotRun, f.session.name, message)
		}
	}
	for _, object := range f.jobs.List() {
		job, ok := object.(*batchv1.Job)
		if !ok || !f.allRead() {
			continue
		}
		for _, condition := range job.Status.Conditions {
			if condition.Status != corev1.ConditionTrue {
				continue
			}
			switch condition.Type {
			case batchv1.JobFailed:
				if condition.Reason == batchv1.JobReasonDeadlineExceeded {
					return fmt.Errorf("%w: no result within %s%s", ErrTimeout, f.session.options.Timeout, f.describe())
				}
				return fmt.Errorf("%w: Job %s failed: %s: %s", ErrNotRun, job.Name, condition.Message, f.session.lastLine())
			case batchv1.JobComplete:
				return fmt.Errorf("%w: Job %s ended without a result: %s", ErrNotRun, job.Name, f.session.lastLine())
			}
		}
	}
	return nil
}

func (f *follower) stepPod(ctx context.Context, pod *corev1.Pod) error {
	status := containerStatus(pod)
	if status == nil {
		return nil
	}
	if waiting := status.State.Waiting; waiting != nil {
		return f.stepWaiting(waiting)
	}
	f.mu.Lock()
	state := f.state[pod.UID]
	if state == 0 {
		f.state[pod.UID] = reading
		name, uid := pod.Name, pod.UID
		f.readers.Go(func() {
			f.readLog(ctx, name, uid)
			f.mu.Lock()
			f.state[uid] = read
			f.mu.Unlock()
			f.wake()
		})
	}
	f.mu.Unlock()
	terminated := status.State.Terminated
	if state != read || terminated == nil || f.session.isStopped() {
		return nil
	}
	switch {
	case terminated.ExitCode == 0:
		return fmt.Errorf("%w: it ended without a result: %s", ErrNotRun, f.session.lastLine())
	case terminated.ExitCode == 1, terminated.ExitCode == 2:
		return fmt.Errorf("%w: %s", ErrNotRun, f.session.lastLine())
	case terminated.Reason == "OOMKilled":
		return fmt.Errorf("%w: it was killed for want of memory", ErrNotRun)
	case terminated.Reason == "StartError" || terminated.Reason == "ContainerCannotRun":
		return fmt.Errorf("%w: %s does not start: %s", ErrImage, f.session.options.Image, oneLine(terminated.Message))
	}
	return nil // the Job replaces the pod, or says why not
}

// stepWaiting names at once what does not go away by waiting.
func (f *follower) stepWaiting(waiting *corev1.ContainerStateWaiting) error {
	image := f.session.options.Image
	switch waiting.Reason {
	case "InvalidImageName", "ErrImageNeverPull":
		return fmt.Errorf("%w: %s cannot be pulled: %s", ErrImage, image, oneLine(waiting.Message))
	case "ErrImagePull", "ImagePullBackOff", "RegistryUnavailable":
		const patience = 30 * time.Second // for a registry that restarts
		if f.pulling.IsZero() {
			f.pulling = time.Now()
		}
		if permanent(waiting.Message) || time.Since(f.pulling) > patience {
			return fmt.Errorf("%w: %s cannot be pulled: %s", ErrImage, image, oneLine(waiting.Message))
		}
	case "CreateContainerConfigError", "CreateContainerError", "RunContainerError":
		return fmt.Errorf("%w: %s does not start: %s", ErrImage, image, oneLine(waiting.Message))
	}
	return nil
}

// permanent tells whether a pull error is of the kind that another try does not heal.
func permanent(message string) bool {
	for _, sign := range []string{"not found", "unauthorized", "denied", "forbidden", "manifest unknown", "no match for platform", "invalid", "Unauthorized", "Forbidden"} {
		if bytes.Contains([]byte(message), []byte(sign)) {
			return true
		}
	}
	return false
}

func containerStatus(pod *corev1.Pod) *corev1.ContainerStatus {
	for i := range pod.Status.ContainerStatuses {
		if pod.Status.ContainerStatuses[i].Name == containerName {
			return &pod.Status.ContainerStatuses[i]
		}
	}
	return nil
}

func ended(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

func (f *follower) allRead() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, state := range f.state {
		if state != read {
			return false
		}
	}
	return true
}

// readLog reads a pod's log to its end, again from where it was when the stream breaks.
func (f *follower) readLog(ctx context.Context, pod string, uid types.UID) {
	lines := 0
	for ctx.Err() == nil && !f.session.hasResult() {
		over := f.isOver(uid)
		stream, err := f.open(ctx, pod, !over)
		if err == nil {
			lines, err = f.readLines(stream, lines)
			stream.Close()
		}
		switch {
		case apierrors.IsNotFound(err):
			return
		case errors.Is(err, bufio.ErrTooLong):
			note(f.session.options.Log, err, "reading the log of %s", pod)
			return
		case over && err == nil: // read when there was nothing more to come
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (f *follower) isOver(uid types.UID) bool {
	for _, pod := range f.podList() {
		if pod.UID == uid {
			return ended(pod)
		}
	}
	return true
}

// readLines passes on the lines after the first skip ones and returns how many lines there were, at least skip.
func (f *follower) readLines(stream io.Reader, skip int) (int, error) {
	scanner := bufio.NewScanner(stream)
	scanner.Buffer(nil, protocol.MaxLine+1)
	scanner.Split(wholeLines)
	lines := 0
	for scanner.Scan() {
		if lines++; lines > skip {
			f.session.line(scanner.Bytes())
		}
	}
	f.wake()
	return max(lines, skip), scanner.Err()
}

// wholeLines is bufio.ScanLines without a last line that lacks its end: the stream broke there, and it comes again.
func wholeLines(data []byte, atEOF bool) (int, []byte, error) {
	if end := bytes.IndexByte(data, '\n'); end >= 0 {
		return end + 1, bytes.TrimSuffix(data[:end], []byte("\r")), nil
	}
	if atEOF {
		return len(data), nil, nil
	}
	return 0, nil, nil
}

// gaveUp is the error of a session whose context ended.
func (f *follower) gaveUp(ctx context.Context) error {
	if errors.Is(context.Cause(ctx), ErrTimeout) {
		return fmt.Errorf("%w: no result within %s%s", ErrTimeout, f.session.options.Timeout, f.describe())
	}
	return fmt.Errorf("waiting for the probe %s: %w", f.session.name, context.Cause(ctx))
}

// describe says where the newest pod stands, for the message of a timeout.
func (f *follower) describe() string {
	pods := f.podList()
	if len(pods) == 0 {
		return ": it has no pod"
	}
	pod := pods[len(pods)-1]
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodScheduled && condition.Status == corev1.ConditionFalse {
			return ": its pod is not scheduled: " + oneLine(condition.Message)
		}
	}
	status := containerStatus(pod)
	switch {
	case status != nil && status.State.Waiting != nil && status.State.Waiting.Message != "":
		return fmt.Sprintf(": its container waits: %s: %s", status.State.Waiting.Reason, oneLine(status.State.Waiting.Message))
	case status != nil && status.State.Running != nil:
		return ": it still runs; last line: " + f.session.lastLine()
	default:
		return ": its pod is " + string(pod.Status.Phase)
	}
}

// failedCreate is why the Job controller cannot create the pod (a quota, Pod Security), "" where it does not say.
func (f *follower) failedCreate(ctx context.Context) string {
	options := f.session.options
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	events, err := options.Client.CoreV1().Events(options.Namespace).List(ctx, metav1.ListOptions{
		FieldSelector: fields.Set{"involvedObject.kind": "Job", "involvedObject.name": f.session.name}.String(),
	})
	if err != nil {
		return "" // no permission for events: the timeout says the rest
	}
	message := ""
	for _, event := range events.Items {
		if event.Reason == "FailedCreate" && event.InvolvedObject.Name == f.session.name {
			message = oneLine(event.Message)
		}
	}
	return message
}

func oneLine(text string) string {
	const most = 300
	text = string(bytes.Join(bytes.Fields([]byte(text)), []byte(" ")))
	if len(text) > most {
		text = text[:most] + "…"
	}
	return text
}
