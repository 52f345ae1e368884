package probe

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"github.com/greenlight-ci/greenlight/pipelines/probe/protocol"
)

const namespace = "models"

// cluster plays the Job controller and the kubelet on client-go's in-memory object store.
type cluster struct {
	t      *testing.T
	client *fake.Clientset
	logs   sync.Map // pod name → *logOf
}

// logOf is a log that grows.
type logOf struct {
	mu     sync.Mutex
	text   []byte
	closed bool
	breaks int // how many streams break after their first read
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t, client: fake.NewClientset()}
	return c
}

func (c *cluster) options() Options {
	return Options{
		Client: c.client, Namespace: namespace, Name: "digits-smoke", Image: "registry/probe@sha256:00", Command: []string{Binary, "smoke"},
		Files: map[string][]byte{"options.json": []byte(`{}`), "cases/zero.json": []byte(`{}`)}, Timeout: 20 * time.Second,
	}
}

func (c *cluster) log(pod string) *logOf {
	found, _ := c.logs.LoadOrStore(pod, &logOf{})
	return found.(*logOf)
}

func (l *logOf) write(lines ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range lines {
		l.text = append(l.text, line+"\n"...)
	}
}

func (l *logOf) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
}

type stream struct {
	ctx    context.Context
	log    *logOf
	at     int
	follow bool
	breaks bool
}

func (s *stream) Read(p []byte) (int, error) {
	for s.ctx.Err() == nil {
		s.log.mu.Lock()
		rest, closed := s.log.text[s.at:], s.log.closed
		n := copy(p, rest)
		s.log.mu.Unlock()
		switch {
		case n > 0 && s.breaks:
			s.at += n
			return n / 2, io.ErrUnexpectedEOF
		case n > 0:
			s.at += n
			return n, nil
		case closed || !s.follow:
			return 0, io.EOF
		}
		time.Sleep(5 * time.Millisecond)
	}
	return 0, s.ctx.Err()
}

func (s *stream) Close() error { return nil }

func (c *cluster) open(ctx context.Context, pod string, follow bool) (io.ReadCloser, error) {
	l := c.log(pod)
	l.mu.Lock()
	defer l.mu.Unlock()
	breaks := l.breaks > 0
	l.breaks--
	return &stream{ctx: ctx, log: l, follow: follow, breaks: breaks}, nil
}

// awaitJob returns the Job when it is there.
func (c *cluster) awaitJob() *batchv1.Job {
	c.t.Helper()
	var job *batchv1.Job
	require.Eventually(c.t, func() bool {
		jobs, err := c.client.BatchV1().Jobs(namespace).List(context.Background(), metav1.ListOptions{})
		if err != nil || len(jobs.Items) != 1 {
			return false
		}
		job = &jobs.Items[0]
		return true
	}, 5*time.Second, 5*time.Millisecond)
	return job
}

func (c *cluster) pod(job *batchv1.Job, name string, state corev1.ContainerState) {
	c.t.Helper()
	phase := corev1.PodPending
	switch {
	case state.Running != nil:
		phase = corev1.PodRunning
	case state.Terminated != nil && state.Terminated.ExitCode == 0:
		phase = corev1.PodSucceeded
	case state.Terminated != nil:
		phase = corev1.PodFailed
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, UID: types.UID(name), Labels: job.Spec.Template.Labels},
		Spec:       job.Spec.Template.Spec, Status: corev1.PodStatus{Phase: phase, ContainerStatuses: []corev1.ContainerStatus{{Name: containerName, State: state}}},
	}
	_, err := c.client.CoreV1().Pods(namespace).Create(context.Background(), pod, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		_, err = c.client.CoreV1().Pods(namespace).UpdateStatus(context.Background(), pod, metav1.UpdateOptions{})
	}
	require.NoError(c.t, err)
	if state.Terminated != nil {
		c.log(name).close()
	}
}

func running() corev1.ContainerState {
	return corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
}

func terminated(code int32) corev1.ContainerState {
	return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code}}
}

func waiting(reason, message string) corev1.ContainerState {
	return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
}

func (c *cluster) start(options Options) *Session {
	c.t.Helper()
	session, err := start(c.t.Context(), options, c.open)
	require.NoError(c.t, err)
	return session
}

// requireClean checks that nothing is left.
func (c *cluster) requireClean() {
	c.t.Helper()
	jobs, err := c.client.BatchV1().Jobs(namespace).List(context.Background(), metav1.ListOptions{})
	require.NoError(c.t, err)
	require.Empty(c.t, jobs.Items)
	configMaps, err := c.client.CoreV1().ConfigMaps(namespace).List(context.Background(), metav1.ListOptions{})
	require.NoError(c.t, err)
	require.Empty(c.t, configMaps.Items)
}

func TestRunBringsBackTheResult(t *testing.T) {
	c := newCluster(t)
	options := c.options()
	var log bytes.Buffer
	options.Log = &log
	session := c.start(options)
	job := c.awaitJob()
	c.log("p1").write("smoke: ok", protocol.EventPrefix+`{"type":"x"}`)
	c.pod(job, "p1", running())
	require.JSONEq(t, `{"type":"x"}`, string((<-session.Events()).JSON))
	c.log("p1").write(protocol.ResultPrefix + `{"passed":true}`)
	result, err := session.Wait()
	require.NoError(t, err)
	require.JSONEq(t, `{"passed":true}`, string(result))
	require.Equal(t, "smoke: ok\n", log.String())
	c.requireClean()
}

func TestJobIsRestricted(t *testing.T) {
	options := newCluster(t).options()
	options.Labels = map[string]string{"greenlight.dev/service": "digits", "greenlight.dev/colour": "green"}
	options.ImagePullSecrets = []string{"pull"}
	options.Owner = &metav1.OwnerReference{Name: "owner"}
	require.NoError(t, options.complete())
	job := buildJob(options, "digits-smoke-abcde")
	pod := job.Spec.Template
	require.NotContains(t, pod.Labels, "greenlight.dev/service", "the live Service must not select a probe")
	require.Equal(t, "green", job.Labels["greenlight.dev/colour"])
	require.Equal(t, "owner", job.OwnerReferences[0].Name)
	require.False(t, *pod.Spec.AutomountServiceAccountToken)
	require.True(t, *pod.Spec.SecurityContext.RunAsNonRoot)
	require.Equal(t, corev1.SeccompProfileTypeRuntimeDefault, pod.Spec.SecurityContext.SeccompProfile.Type)
	container := pod.Spec.Containers[0]
	require.False(t, *container.SecurityContext.AllowPrivilegeEscalation)
	require.True(t, *container.SecurityContext.ReadOnlyRootFilesystem)
	require.Equal(t, []corev1.Capability{"ALL"}, container.SecurityContext.Capabilities.Drop)
	require.Equal(t, []corev1.KeyToPath{{Key: "file-0000", Path: "cases/zero.json"}, {Key: "file-0001", Path: "options.json"}}, pod.Spec.Volumes[0].ConfigMap.Items)
	require.Equal(t, int32(300), *job.Spec.TTLSecondsAfterFinished)
	require.Equal(t, int64(21), *job.Spec.ActiveDeadlineSeconds)
	require.Equal(t, "pull", pod.Spec.ImagePullSecrets[0].Name)
}

func TestConfigMapIsOwnedByTheJob(t *testing.T) {
	c := newCluster(t)
	session := c.start(c.options())
	job := c.awaitJob()
	require.Eventually(t, func() bool {
		configMap, err := c.client.CoreV1().ConfigMaps(namespace).Get(context.Background(), job.Name, metav1.GetOptions{})
		return err == nil && configMap.OwnerReferences[0].Name == job.Name && *configMap.Immutable && configMap.Data["file-0001"] == "{}"
	}, 5*time.Second, 5*time.Millisecond)
	session.cancel()
	_, err := session.Wait()
	require.ErrorIs(t, err, context.Canceled)
	c.requireClean()
}

func TestBrokenLogStreamsAreReadAgain(t *testing.T) {
	c := newCluster(t)
	var log bytes.Buffer
	options := c.options()
	options.Log = &log
	c.log("p1").breaks = 3
	c.log("p1").write("one", "two", "three")
	session := c.start(options)
	job := c.awaitJob()
	c.pod(job, "p1", running())
	time.AfterFunc(300*time.Millisecond, func() { c.log("p1").write("four", protocol.ResultPrefix+`1`) })
	_, err := session.Wait()
	require.NoError(t, err)
	require.Equal(t, "one\ntwo\nthree\nfour\n", log.String(), "every line once")
}

func TestRetriedPodCounts(t *testing.T) {
	c := newCluster(t)
	session := c.start(c.options())
	job := c.awaitJob()
	c.log("p1").write("started")
	c.pod(job, "p1", running())
	c.pod(job, "p1", terminated(137)) // evicted
	c.log("p2").write(protocol.ResultPrefix + `{"passed":true}`)
	time.AfterFunc(100*time.Millisecond, func() { c.pod(job, "p2", terminated(0)) })
	result, err := session.Wait()
	require.NoError(t, err)
	require.JSONEq(t, `{"passed":true}`, string(result))
}

func TestWhyAProbeDoesNotRun(t *testing.T) {
	unschedulable := func(c *cluster, job *batchv1.Job) {
		c.pod(job, "p1", corev1.ContainerState{})
		pod, err := c.client.CoreV1().Pods(namespace).Get(context.Background(), "p1", metav1.GetOptions{})
		require.NoError(c.t, err)
		pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Message: "0/1 nodes are available: 1 Insufficient cpu."}}
		_, err = c.client.CoreV1().Pods(namespace).UpdateStatus(context.Background(), pod, metav1.UpdateOptions{})
		require.NoError(c.t, err)
	}
	for _, c := range []struct {
		name    string
		happens func(*cluster, *batchv1.Job)
		is      error
		reason  string
	}{
		{"image not found", func(c *cluster, job *batchv1.Job) {
			c.pod(job, "p1", waiting("ErrImagePull", "registry/probe@sha256:00:\n not found"))
		}, ErrImage, "registry/probe@sha256:00 cannot be pulled: registry/probe@sha256:00: not found"},
		{"image name", func(c *cluster, job *batchv1.Job) { c.pod(job, "p1", waiting("InvalidImageName", "bad reference")) }, ErrImage, "bad reference"},
		{"image runs as root", func(c *cluster, job *batchv1.Job) {
			c.pod(job, "p1", waiting("CreateContainerConfigError", "container has runAsNonRoot and image will run as root"))
		}, ErrImage, "does not start: container has runAsNonRoot"},
		{"no such command", func(c *cluster, job *batchv1.Job) {
			c.pod(job, "p1", corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 128, Reason: "StartError", Message: `exec: "/nope": stat /nope: no such file`}})
		}, ErrImage, "no such file"},
		{"bad options", func(c *cluster, job *batchv1.Job) {
			c.log("p1").write("greenlight-probe: smoke options: there is no golden case")
			c.pod(job, "p1", terminated(2))
		}, ErrNotRun, "there is no golden case"},
		{"no result", func(c *cluster, job *batchv1.Job) { c.pod(job, "p1", terminated(0)) }, ErrNotRun, "ended without a result: its log is empty"},
		{"out of memory", func(c *cluster, job *batchv1.Job) {
			c.pod(job, "p1", corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 137, Reason: "OOMKilled"}})
		}, ErrNotRun, "for want of memory"},
		{"failed too often", func(c *cluster, job *batchv1.Job) {
			job = job.DeepCopy()
			job.Status.Conditions = []batchv1.JobCondition{{Type: batchv1.JobFailed, Status: corev1.ConditionTrue, Reason: "BackoffLimitExceeded", Message: "Job has reached the specified backoff limit"}}
			_, err := c.client.BatchV1().Jobs(namespace).UpdateStatus(context.Background(), job, metav1.UpdateOptions{})
			require.NoError(c.t, err)
		}, ErrNotRun, "Job has reached the specified backoff limit"},
		{"not scheduled", unschedulable, ErrTimeout, "its pod is not scheduled: 0/1 nodes are available"},
		{"hangs", func(c *cluster, job *batchv1.Job) {
			c.log("p1").write("smoke: waiting for the service")
			c.pod(job, "p1", running())
		}, ErrTimeout, "no result within 1.5s: it still runs; last line: smoke: waiting for the service"},
		{"no pod", func(*cluster, *batchv1.Job) {}, ErrTimeout, "it has no pod"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			cl := newCluster(t)
			options := cl.options()
			if errors.Is(c.is, ErrTimeout) {
				options.Timeout = 1500 * time.Millisecond
			}
			session := cl.start(options)
			c.happens(cl, cl.awaitJob())
			_, err := session.Wait()
			require.ErrorIs(t, err, c.is)
			require.ErrorContains(t, err, c.reason)
			require.NotContains(t, err.Error(), "\n")
			cl.requireClean()
		})
	}
}

func TestForbiddenPodIsNamed(t *testing.T) {
	c := newCluster(t)
	options := c.options()
	session := c.start(options)
	job := c.awaitJob()
	_, err := c.client.CoreV1().Events(namespace).Create(context.Background(), &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: "e", Namespace: namespace}, Reason: "FailedCreate",
		InvolvedObject: corev1.ObjectReference{Kind: "Job", Name: job.Name}, Message: `pods "x" is forbidden: exceeded quota`,
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	_, err = session.Wait()
	require.ErrorIs(t, err, ErrNotRun)
	require.ErrorContains(t, err, "exceeded quota")
}

func TestCreationErrors(t *testing.T) {
	for _, kind := range []string{"jobs", "configmaps"} {
		c := newCluster(t)
		c.client.PrependReactor("create", kind, func(k8stesting.Action) (bool, runtime.Object, error) {
			return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: kind}, "x", errors.New("no permission"))
		})
		_, err := Start(t.Context(), c.options())
		require.ErrorContains(t, err, "no permission")
		require.True(t, apierrors.IsForbidden(err))
		c.requireClean()
	}
}

func TestStop(t *testing.T) {
	c := newCluster(t)
	session := c.start(c.options())
	job := c.awaitJob()
	c.log("p1").write(protocol.EventPrefix + `{}`)
	c.pod(job, "p1", running())
	<-session.Events() // its log is being read
	c.client.PrependReactor("delete-collection", "pods", func(k8stesting.Action) (bool, runtime.Object, error) {
		// The kubelet: SIGTERM, the probe writes its result, the pod goes.
		c.log("p1").write(protocol.ResultPrefix + `{"requests":7}`)
		c.log("p1").close()
		return true, nil, c.client.Tracker().Delete(schema.GroupVersionResource{Version: "v1", Resource: "pods"}, namespace, "p1")
	})
	result, err := session.Stop(t.Context())
	require.NoError(t, err)
	require.JSONEq(t, `{"requests":7}`, string(result))
	c.requireClean()
	again, err := session.Stop(t.Context())
	require.NoError(t, err)
	require.Equal(t, result, again)
}

func TestBadOptions(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Options)
		reason string
	}{
		"no client":    {func(o *Options) { o.Client = nil }, "no cluster client"},
		"no namespace": {func(o *Options) { o.Namespace = "" }, "namespace is missing"},
		"no image":     {func(o *Options) { o.Image = "" }, "image is missing"},
		"image":        {func(o *Options) { o.Image = "a b" }, "no image reference"},
		"name":         {func(o *Options) { o.Name = "Digits" }, "DNS label"},
		"long name":    {func(o *Options) { o.Name = strings.Repeat("x", 51) }, "at most 50"},
		"file outside": {func(o *Options) { o.Files["../x"] = nil }, "path below /etc/greenlight"},
		"too large":    {func(o *Options) { o.Files["cases/big.json"] = make([]byte, 1<<20) }, "the largest is cases/big.json with 1048576 bytes"},
		"timeout":      {func(o *Options) { o.Timeout = -1 }, "timeout must be"},
	} {
		t.Run(name, func(t *testing.T) {
			cl := newCluster(t)
			options := cl.options()
			c.change(&options)
			_, err := Run(t.Context(), options)
			require.ErrorIs(t, err, ErrOptions)
			require.ErrorContains(t, err, c.reason)
			cl.requireClean()
		})
	}
}
