package deploy

import (
	"context"
	"fmt"
	"sort"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

// verdict is what a look at the colour says.
type verdict struct {
	ready, wanted int32
	// done: every pod of the generation is ready, and no other pod is left.
	done bool
	// hopeless: it will not get better before the deadline.
	hopeless bool
	// reason says why it is not done.
	reason string
	// silent is a container that runs and is not ready, and whose log may say why.
	silent *corev1.Pod
	in     string
}

func (v verdict) line() string {
	if v.reason == "" {
		return fmt.Sprintf("%d of %d pods ready", v.ready, v.wanted)
	}
	return fmt.Sprintf("%d of %d pods ready: %s", v.ready, v.wanted, v.reason)
}

// finding is what is wrong with one pod. A higher rank explains more.
type finding struct {
	rank     int
	hopeless bool
	text     string
	// silent and in are as in verdict.
	silent *corev1.Pod
	in     string
}

func found(rank int, hopeless bool, text string) finding {
	return finding{rank: rank, hopeless: hopeless, text: text}
}

const (
	rankStarting = iota
	rankProbing
	rankScheduling
	rankImage
	rankFailing
)

// judge says how far the colour is.
func (w *waiter) judge(ctx context.Context, v view) verdict {
	out := verdict{wanted: replicas(w.deployment.Spec.Replicas)}
	d := v.deployment
	if d != nil {
		// An autoscaler may ask for more meanwhile.
		out.wanted = max(out.wanted, replicas(d.Spec.Replicas))
	}
	switch {
	case d == nil || d.UID != w.deployment.UID:
		out.hopeless, out.reason = true, "the deployment has been deleted"
		return out
	case d.Generation > w.deployment.Generation && changedSince(w.deployment, d):
		out.hopeless, out.reason = true, "somebody else has changed the deployment"
		return out
	case d.Generation > w.deployment.Generation && replicas(d.Spec.Replicas) < replicas(w.deployment.Spec.Replicas):
		out.hopeless, out.reason = true, fmt.Sprintf("somebody else has scaled the deployment to %d", replicas(d.Spec.Replicas))
		return out
	case d.Generation < w.deployment.Generation:
		// The watch is behind our own write.
		out.reason = "applied"
		return out
	}
	var findings []finding
	var old, failed int
	for _, p := range v.pods {
		switch {
		case !w.current(p) || p.DeletionTimestamp != nil:
			old++
		case podReady(p):
			out.ready++
		case p.Status.Phase == corev1.PodFailed:
			failed++
			findings = append(findings, found(rankFailing, failed >= 3, failedPod(p)))
		default:
			findings = append(findings, w.inspect(ctx, p, anyStopping(v.pods)))
		}
	}
	s := d.Status
	if s.ObservedGeneration < w.deployment.Generation {
		out.reason = "the deployment controller has not seen the change yet"
		return out
	}
	out.done = out.ready >= out.wanted && old == 0 && s.ReadyReplicas == out.wanted && s.UpdatedReplicas == out.wanted && s.Replicas == out.wanted
	if out.done {
		return out
	}
	if f, ok := w.creation(d, old); ok {
		findings = append(findings, f)
	}
	switch {
	case len(findings) > 0:
		sort.SliceStable(findings, func(i, j int) bool {
			a, b := findings[i], findings[j]
			if a.hopeless != b.hopeless {
				return a.hopeless
			}
			return a.rank > b.rank
		})
		worst := findings[0]
		out.hopeless, out.reason, out.silent, out.in = worst.hopeless, worst.text, worst.silent, worst.in
	case old > 0:
		out.reason = fmt.Sprintf("%d pods of before are stopping", old)
	case out.ready < out.wanted:
		out.reason = "pods are being created"
	}
	return out
}

// changedSince says whether more than the number of replicas differs from what was written.
func changedSince(was, is *appsv1.Deployment) bool {
	return was.Spec.Template.Annotations[AnnotationRelease] != is.Spec.Template.Annotations[AnnotationRelease] ||
		imageOf(was) != imageOf(is)
}

func imageOf(d *appsv1.Deployment) string {
	if len(d.Spec.Template.Spec.Containers) == 0 {
		return ""
	}
	return d.Spec.Template.Spec.Containers[0].Image
}

// current says whether a pod is of the template that was written, and not of a leftover.
func (w *waiter) current(p *corev1.Pod) bool {
	t := w.deployment.Spec.Template
	return p.Annotations[AnnotationRelease] == t.Annotations[AnnotationRelease] &&
		p.Labels[LabelVersion] == t.Labels[LabelVersion] &&
		len(p.Spec.Containers) > 0 && p.Spec.Containers[0].Image == imageOf(w.deployment)
}

// creation explains pods that the API server refuses to make: quotas and admission.
func (w *waiter) creation(d *appsv1.Deployment, old int) (finding, bool) {
	for _, c := range d.Status.Conditions {
		if c.Type != appsv1.DeploymentReplicaFailure || c.Status != corev1.ConditionTrue {
			continue
		}
		text := oneLine(c.Message)
		if strings.Contains(text, "exceeded quota") {
			// Room may come when others go; our own pods that stop are waited for.
			return found(rankFailing, w.longer("quota", w.o.UnschedulableGrace) && old == 0, "quota: "+text), true
		}
		return found(rankFailing, w.longer("refused", 5*time.Second), "pods are refused: "+text), true
	}
	delete(w.since, "quota")
	delete(w.since, "refused")
	return finding{}, false
}

// longer says whether a state has been seen for longer than d; the clock starts with the first question.
func (w *waiter) longer(what string, d time.Duration) bool {
	first, ok := w.since[what]
	if !ok {
		w.since[what] = w.now()
		return false
	}
	return w.now().Sub(first) >= d
}

func failedPod(p *corev1.Pod) string {
	text := "pod failed"
	if p.Status.Reason != "" {
		text += ": " + p.Status.Reason
	}
	if p.Status.Message != "" {
		text += ": " + oneLine(p.Status.Message)
	}
	return text
}

// inspect says what a pod that is not ready is waiting for.
func (w *waiter) inspect(ctx context.Context, p *corev1.Pod, stopping bool) finding {
	if f, ok := w.inspectScheduling(ctx, p, stopping); ok {
		return f
	}
	statuses := append(append([]corev1.ContainerStatus{}, p.Status.InitContainerStatuses...), p.Status.ContainerStatuses...)
	for _, c := range statuses {
		if c.Ready || (c.State.Terminated != nil && c.State.Terminated.ExitCode == 0 && p.Status.Phase == corev1.PodPending) {
			continue
		}
		return w.inspectContainer(ctx, p, c)
	}
	if p.Spec.NodeName == "" {
		return found(rankStarting, false, "no scheduler has looked at the pod yet")
	}
	return found(rankStarting, false, "the kubelet of "+p.Spec.NodeName+" has not reported on the pod yet")
}

func (w *waiter) inspectScheduling(ctx context.Context, p *corev1.Pod, stopping bool) (finding, bool) {
	for _, c := range p.Status.Conditions {
		if c.Type != corev1.PodScheduled || c.Status == corev1.ConditionTrue {
			continue
		}
		if c.Reason == corev1.PodReasonSchedulingGated {
			return found(rankScheduling, false, "scheduling is gated: "+oneLine(c.Message)), true
		}
		text := "unschedulable: " + schedulerMessage(c.Message)
		stuck := w.longer("unschedulable/"+string(p.UID), w.o.UnschedulableGrace)
		if !stuck || w.o.ScaleUp || stopping {
			return found(rankScheduling, false, text), true
		}
		for _, e := range w.events(ctx, p) {
			// What the cluster autoscaler and Karpenter say when they add a node.
			if e.Reason == "TriggeredScaleUp" || e.Reason == "Nominated" {
				return found(rankScheduling, false, text+" (a node is being added: "+oneLine(e.Message)+")"), true
			}
		}
		return found(rankScheduling, true, text), true
	}
	delete(w.since, "unschedulable/"+string(p.UID))
	return finding{}, false
}

// schedulerMessage drops what the scheduler says about preemption: a candidate takes nobody's place.
func schedulerMessage(text string) string {
	text = oneLine(text)
	for _, tail := range []string{" preemption:", " no new claims to deallocate"} {
		if i := strings.Index(text, tail); i > 0 {
			text = text[:i]
		}
	}
	return strings.TrimRight(text, " .,")
}

// anyStopping says whether a pod of the colour is on its way out: it still holds what the next one waits for.
func anyStopping(pods []*corev1.Pod) bool {
	for _, p := range pods {
		if p.DeletionTimestamp != nil {
			return true
		}
	}
	return false
}
