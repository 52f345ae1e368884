package observe

import (
	"fmt"
	"maps"
	"strings"
	"time"
	"unicode"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// pods takes a view of the cluster and returns a reason to stop.
func (b *bake) pods(v view, now time.Time) string {
	o := b.o
	b.trouble = v.trouble
	if !v.synced {
		return ""
	}
	switch {
	case v.service == nil:
		return fmt.Sprintf("the live service %s/%s is gone", o.Namespace, o.Service)
	case !maps.Equal(v.service.Spec.Selector, o.selector()):
		return fmt.Sprintf("somebody has changed the selector of the live service %s/%s to %s", o.Namespace, o.Service,
			metav1.FormatLabelSelector(metav1.SetAsLabelSelector(v.service.Spec.Selector)))
	case v.deployment == nil:
		return fmt.Sprintf("the deployment %s/%s is gone", o.Namespace, o.deploymentName())
	}
	ready := 0
	for _, p := range v.pods {
		if takesTraffic(p) {
			ready++
		}
	}
	why := b.countRestarts(v.pods)
	b.result.Wanted = 1
	if n := v.deployment.Spec.Replicas; n != nil {
		b.result.Wanted = int(*n)
	}
	switch {
	case !b.seenPods:
		fmt.Fprintf(o.Log, "%s: %d of %d pods ready as the watch begins\n", o.Colour, ready, b.result.Wanted)
		b.seenPods, b.ready, b.result.MinReady = true, ready, ready
	case ready != b.ready:
		fmt.Fprintf(o.Log, "%s: %d of %d pods ready\n", o.Colour, ready, b.result.Wanted)
		b.result.ReadyChanges++
		b.ready, b.result.MinReady = ready, min(b.result.MinReady, ready)
	}
	if ready >= b.result.Wanted {
		b.unready = time.Time{}
	} else if b.unready.IsZero() {
		b.unready = now
	}
	switch {
	case b.result.Restarts > o.MaxRestarts:
		return why
	case ready == 0:
		return "no pod is ready" + after(why)
	}
	return ""
}

func after(why string) string {
	if why == "" {
		return ""
	}
	return ": " + why
}

// countRestarts adds what containers have restarted since the first look, and returns how the newest of them ended.
func (b *bake) countRestarts(pods []*corev1.Pod) string {
	for _, p := range pods {
		for _, c := range p.Status.ContainerStatuses {
			key := string(p.UID) + "/" + c.Name
			before, known := b.restarts[key]
			// A pod that came later has no restarts of before the bake.
			if !known && b.seenPods {
				before = 0
			} else if !known {
				before = c.RestartCount
			}
			b.restarts[key] = max(c.RestartCount, before)
			if c.RestartCount <= before {
				continue
			}
			b.result.Restarts += int(c.RestartCount - before)
			b.lastRestart = fmt.Sprintf("container %s of pod %s was restarted (%s)", c.Name, p.Name, ending(c))
		}
	}
	return b.lastRestart
}

// ending says how a container ended last.
func ending(c corev1.ContainerStatus) string {
	end := c.LastTerminationState.Terminated
	if end == nil {
		end = c.State.Terminated
	}
	if end == nil {
		return "how it ended is not known"
	}
	text := fmt.Sprintf("exit code %d", end.ExitCode)
	if end.Reason != "" && end.Reason != "Error" {
		text = end.Reason + ", " + text
	}
	if line := lastLine(end.Message); line != "" {
		text += ": " + line
	}
	return text
}

// lastLine is the last line that holds something, without the control characters with which a log could repaint a
// terminal.
func lastLine(text string) string {
	lines := strings.Split(text, "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		line := strings.Map(func(r rune) rune {
			if unicode.IsControl(r) && !unicode.IsSpace(r) {
				return -1
			}
			return r
		}, lines[i])
		if line = strings.Join(strings.Fields(line), " "); line != "" {
			if r := []rune(line); len(r) > 200 {
				line = string(r[:200]) + "…"
			}
			return line
		}
	}
	return ""
}

// takesTraffic says whether a pod is ready and not on its way out.
func takesTraffic(p *corev1.Pod) bool {
	if p.DeletionTimestamp != nil {
		return false
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}
