package deploy

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func deploymentOf(t *testing.T, o Options) *appsv1.Deployment {
	t.Helper()
	s, err := Render(o)
	require.NoError(t, err)
	d := typed[appsv1.Deployment](t, s.Deployment)
	d.UID, d.Generation = "d", 2
	d.Status.ObservedGeneration = 2
	return &d
}

// podOf is a scheduled pod of the Deployment that runs and is not ready.
func podOf(d *appsv1.Deployment, name string, change ...func(*corev1.Pod)) *corev1.Pod {
	started := true
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: d.Namespace, Name: d.Name + "-" + name, UID: types.UID(name),
			Labels: d.Spec.Template.Labels, Annotations: d.Spec.Template.Annotations,
		},
		Spec: *d.Spec.Template.Spec.DeepCopy(),
		Status: corev1.PodStatus{
			Phase:      corev1.PodRunning,
			Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionTrue}, {Type: corev1.PodReady, Status: corev1.ConditionFalse}},
			ContainerStatuses: []corev1.ContainerStatus{{
				Name: "service", Started: &started, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
			}},
		},
	}
	p.Spec.NodeName = "node-a"
	for _, c := range change {
		c(p)
	}
	return p
}

func ready(p *corev1.Pod) {
	p.Status.Conditions[1].Status = corev1.ConditionTrue
	p.Status.ContainerStatuses[0].Ready = true
}

func waiting(reason, message string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Status.Phase = corev1.PodPending
		p.Status.ContainerStatuses[0].State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
	}
}

func ended(restarts int32, end corev1.ContainerStateTerminated) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Status.ContainerStatuses[0].RestartCount = restarts
		p.Status.ContainerStatuses[0].LastTerminationState = corev1.ContainerState{Terminated: &end}
	}
}

func unschedulable(message string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.NodeName, p.Status.Phase, p.Status.ContainerStatuses = "", corev1.PodPending, nil
		p.Status.Conditions[0] = corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable, Message: message}
	}
}

func stopping(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: time.Now()} }

func event(reason, message string) corev1.Event {
	return corev1.Event{Reason: reason, Message: message}
}

const noGPU = "0/3 nodes are available: 1 node(s) had untolerated taint {x: y}, 2 Insufficient nvidia.com/gpu. preemption: 0/3 nodes are available: 3 No preemption victims found for incoming pod."

func TestJudge(t *testing.T) {
	oom := corev1.ContainerStateTerminated{Reason: "OOMKilled", ExitCode: 137}
	crash := corev1.ContainerStateTerminated{Reason: "Error", ExitCode: 3, Message: "Traceback\n  File x\nRuntimeError: no weights\x1b[31m\n"}
	killed := corev1.ContainerStateTerminated{Reason: "Error", ExitCode: 137}
	for name, c := range map[string]struct {
		pods   []func(*corev1.Pod)
		change func(d *appsv1.Deployment)
		events []corev1.Event
		log    string
		option func(*Options)
		// after is how long the same state has been seen before the look that counts.
		after    time.Duration
		hopeless bool
		done     bool
		want     string
	}{
		"ready": {pods: []func(*corev1.Pod){ready}, done: true, want: ""},
		"ready, but the controller is behind": {
			pods:   []func(*corev1.Pod){ready},
			change: func(d *appsv1.Deployment) { d.Status.ObservedGeneration = 1 }, want: "has not seen the change yet",
		},
		"ready, but an old pod is left": {pods: []func(*corev1.Pod){ready, func(p *corev1.Pod) { ready(p); stopping(p) }}, want: "1 pods of before are stopping"},
		"pod of an earlier release crash-loops": {pods: []func(*corev1.Pod){func(p *corev1.Pod) {
			waiting("CrashLoopBackOff", "")(p)
			p.Annotations = map[string]string{AnnotationRelease: "r0"}
		}}, want: "1 pods of before are stopping"},
		"nothing yet": {want: "pods are being created"},
		"deleted":     {change: func(d *appsv1.Deployment) { d.UID = "other" }, hopeless: true, want: "has been deleted"},
		"changed by somebody": {
			change:   func(d *appsv1.Deployment) { d.Generation = 3; d.Spec.Template.Spec.Containers[0].Image = "x" },
			hopeless: true, want: "somebody else has changed",
		},
		"scaled by somebody": {
			pods: []func(*corev1.Pod){ready}, change: func(d *appsv1.Deployment) { d.Generation = 3; *d.Spec.Replicas = 1 },
			option: func(o *Options) { o.Replicas = 2 }, hopeless: true, want: "scaled the deployment to 1",
		},
		"scaled up by an autoscaler": {pods: []func(*corev1.Pod){ready}, change: func(d *appsv1.Deployment) { d.Generation = 3; *d.Spec.Replicas = 2 }, want: "pods are being created"},
		"image not there": {
			pods:     []func(*corev1.Pod){waiting("ErrImagePull", `rpc error: code = NotFound desc = failed to resolve image: r/x@sha256:0: not found`)},
			hopeless: true, want: "cannot be pulled: r/x@sha256:0: not found",
		},
		"image forbidden": {pods: []func(*corev1.Pod){waiting("ErrImagePull", `failed to authorize: 401 Unauthorized`)}, hopeless: true, want: "401 Unauthorized"},
		"registry down":   {pods: []func(*corev1.Pod){waiting("ErrImagePull", "dial tcp 10.0.0.1:443: connect: connection refused")}, want: "connection refused"},
		"image back-off":  {pods: []func(*corev1.Pod){waiting("ImagePullBackOff", "Back-off pulling image")}, events: []corev1.Event{event("Failed", "Failed to pull image \"x\": manifest unknown")}, hopeless: true, want: "manifest unknown"},
		"image name":      {pods: []func(*corev1.Pod){waiting("InvalidImageName", "couldn't parse")}, hopeless: true, want: "InvalidImageName: couldn't parse"},
		"no GPU":          {pods: []func(*corev1.Pod){unschedulable(noGPU)}, want: "unschedulable: 0/3 nodes are available: 1 node(s) had untolerated taint {x: y}, 2 Insufficient nvidia.com/gpu"},
		"no GPU for long": {pods: []func(*corev1.Pod){unschedulable(noGPU)}, after: time.Minute, hopeless: true, want: "Insufficient nvidia.com/gpu"},
		"no GPU for long, but our own pod still stops": {pods: []func(*corev1.Pod){unschedulable(noGPU), stopping}, after: time.Minute, want: "Insufficient nvidia.com/gpu"},
		"no GPU for long, but a node comes": {
			pods: []func(*corev1.Pod){unschedulable(noGPU)}, after: time.Minute,
			events: []corev1.Event{event("TriggeredScaleUp", "pod triggered scale-up: 0->1")}, want: "a node is being added",
		},
		"no GPU for long in a cluster that grows": {pods: []func(*corev1.Pod){unschedulable(noGPU)}, after: time.Minute, option: func(o *Options) { o.ScaleUp = true }, want: "Insufficient"},
		"crash":        {pods: []func(*corev1.Pod){ended(1, crash)}, want: "container service crashed (exit code 3, 1 restarts): RuntimeError: no weights[31m"},
		"crash loop":   {pods: []func(*corev1.Pod){func(p *corev1.Pod) { ended(1, crash)(p); waiting("CrashLoopBackOff", "back-off 10s")(p) }}, hopeless: true, want: "(CrashLoopBackOff, exit code 3, 1 restarts): RuntimeError: no weights"},
		"crash thrice": {pods: []func(*corev1.Pod){ended(2, crash)}, hopeless: true, want: "no weights"},
		"crash without a message": {
			pods: []func(*corev1.Pod){func(p *corev1.Pod) {
				ended(1, corev1.ContainerStateTerminated{Reason: "Completed"})(p)
				waiting("CrashLoopBackOff", "")(p)
			}},
			log: "bye", hopeless: true, want: "exit code 0, 1 restarts): bye",
		},
		"out of memory": {pods: []func(*corev1.Pod){ended(1, oom)}, option: func(o *Options) { o.Limits = map[string]string{"memory": "1Gi"} }, hopeless: true, want: "killed for memory (OOMKilled): its limit is 1Gi"},
		"startup probe": {
			pods: []func(*corev1.Pod){ended(1, killed)}, hopeless: true, want: "within its startup time: Startup probe failed: HTTP probe failed with statuscode: 503",
			events: []corev1.Event{event("Unhealthy", "Startup probe failed: HTTP probe failed with statuscode: 503"), event("Killing", "Container service failed startup probe, will be restarted")},
		},
		"readiness probe": {
			pods: []func(*corev1.Pod){nil}, after: time.Minute, want: "running, but not ready: Readiness probe failed: HTTP probe failed with statuscode: 500",
			events: []corev1.Event{event("Unhealthy", "Readiness probe failed: old"), event("Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 500")},
		},
		"still starting": {pods: []func(*corev1.Pod){func(p *corev1.Pod) { no := false; p.Status.ContainerStatuses[0].Started = &no }}, want: "running, still starting"},
		"root": {
			pods:  []func(*corev1.Pod){waiting("CreateContainerConfigError", `container has runAsNonRoot and image will run as root (pod: "a_b(c)", container: service)`)},
			after: 10 * time.Second, hopeless: true, want: "image will run as root; give the image a numeric USER other than 0",
		},
		"config map key": {
			pods:  []func(*corev1.Pod){waiting("CreateContainerConfigError", "couldn't find key mode in ConfigMap team/settings")},
			after: 10 * time.Second, hopeless: true, want: "CreateContainerConfigError: couldn't find key mode",
		},
		"volume": {
			pods: []func(*corev1.Pod){waiting("ContainerCreating", "")}, after: 10 * time.Second, hopeless: true, want: `secret "keys" not found`,
			events: []corev1.Event{event("FailedMount", `MountVolume.SetUp failed for volume "mount-0" : secret "keys" not found`)},
		},
		"device refused": {pods: []func(*corev1.Pod){func(p *corev1.Pod) {
			p.Status.Phase, p.Status.Reason, p.Status.Message = corev1.PodFailed, "UnexpectedAdmissionError", "Allocate failed"
		}}, want: "pod failed: UnexpectedAdmissionError: Allocate failed"},
		"quota": {change: func(d *appsv1.Deployment) {
			d.Status.Conditions = []appsv1.DeploymentCondition{{
				Type: appsv1.DeploymentReplicaFailure, Status: corev1.ConditionTrue, Reason: "FailedCreate",
				Message: `pods "x" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1, used: 2, limited: 2`,
			}}
		}, after: time.Minute, hopeless: true, want: "quota: pods \"x\" is forbidden: exceeded quota: gpus"},
		"admission": {change: func(d *appsv1.Deployment) {
			d.Status.Conditions = []appsv1.DeploymentCondition{{Type: appsv1.DeploymentReplicaFailure, Status: corev1.ConditionTrue, Message: `violates PodSecurity`}}
		}, after: 10 * time.Second, hopeless: true, want: "pods are refused: violates PodSecurity"},
		"one of two ready": {pods: []func(*corev1.Pod){ready, unschedulable(noGPU)}, option: func(o *Options) { o.Replicas = 2 }, want: "Insufficient"},
	} {
		t.Run(name, func(t *testing.T) {
			o := good()
			if c.option != nil {
				c.option(&o)
			}
			d := deploymentOf(t, o)
			v := view{deployment: d.DeepCopy()}
			for i, change := range c.pods {
				p := podOf(d, string(rune('a'+i)))
				if change != nil {
					change(p)
				}
				v.pods = append(v.pods, p)
				v.deployment.Status.Replicas++
				v.deployment.Status.UpdatedReplicas++
				if podReady(p) {
					v.deployment.Status.ReadyReplicas++
				}
			}
			if c.change != nil {
				c.change(v.deployment)
			}
			now := time.Now()
			w := &waiter{
				o: o.withDefaults(), deployment: d, since: map[string]time.Time{}, now: func() time.Time { return now },
				events:   func(context.Context, *corev1.Pod) []corev1.Event { return c.events },
				lastLine: func(context.Context, *corev1.Pod, string, bool) string { return c.log },
			}
			got := w.judge(t.Context(), v)
			if c.after > 0 {
				require.False(t, got.hopeless, "at first sight")
				now = now.Add(c.after)
				got = w.judge(t.Context(), v)
			}
			require.Equal(t, c.done, got.done, got.reason)
			require.Equal(t, c.hopeless, got.hopeless, got.reason)
			require.Contains(t, got.reason, c.want)
			require.NotContains(t, got.reason, "preemption")
			require.NotContains(t, got.reason, "\x1b")
		})
	}
}

func TestPullError(t *testing.T) {
	const ref = "r.example:5000/x@sha256:0"
	for message, want := range map[string]string{
		`rpc error: code = NotFound desc = failed to pull and unpack image "` + ref + `": failed to resolve image: ` + ref + `: not found`:                                "not found",
		`failed to pull and unpack image "` + ref + `": failed to resolve reference "` + ref + `": failed to do request: Head "https://r/": dial tcp: connection refused`: `Head "https://r/": dial tcp: connection refused`,
		`Back-off pulling image "` + ref + `": ErrImagePull: rpc error: code = Unknown desc = failed to authorize: 401 Unauthorized`:                                      "failed to authorize: 401 Unauthorized",
		`Back-off pulling image "` + ref + `"`: `Back-off pulling image "` + ref + `"`,
		"":                                     "",
	} {
		require.Equal(t, want, pullError(message, ref))
	}
}
