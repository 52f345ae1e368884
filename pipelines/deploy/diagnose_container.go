package deploy

import (
	"cmp"
	"context"
	"fmt"
	"regexp"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// final are the answers to a pull that the next attempt gets again.
var final = regexp.MustCompile(`(?i)not found|manifest unknown|name unknown|unauthorized|authentication required|forbidden|denied|no match for platform|invalid reference|unsupported media type`)

// podSuffix names the pod once more, at the end of some of the kubelet's messages.
var podSuffix = regexp.MustCompile(` \(pod: "[^"]*", container: [^)]*\)$`)

func (w *waiter) inspectContainer(ctx context.Context, p *corev1.Pod, c corev1.ContainerStatus) finding {
	if waiting := c.State.Waiting; waiting != nil {
		text := waiting.Reason
		if waiting.Message != "" {
			text += ": " + podSuffix.ReplaceAllString(oneLine(waiting.Message), "")
		}
		if strings.Contains(text, "runAsNonRoot") {
			text += "; give the image a numeric USER other than 0"
		}
		switch waiting.Reason {
		case "ErrImagePull", "ImagePullBackOff", "ImageInspectError", "RegistryUnavailable", "SignatureValidationFailed":
			return w.inspectPull(ctx, p, c, waiting)
		case "InvalidImageName", "ErrImageNeverPull":
			return found(rankImage, true, text)
		case "CreateContainerConfigError", "CreateContainerError", "RunContainerError":
			// The kubelet tries again, but a key that is missing does not appear by itself.
			key := "create/" + string(p.UID)
			return found(rankFailing, w.longer(key, 5*time.Second), text)
		case "CrashLoopBackOff":
			return w.inspectCrash(ctx, p, c, true)
		default:
			return w.inspectCreating(ctx, p)
		}
	}
	if c.State.Terminated != nil || c.LastTerminationState.Terminated != nil {
		return w.inspectCrash(ctx, p, c, c.State.Terminated != nil && c.RestartCount > 0)
	}
	return w.inspectProbes(ctx, p, c)
}

func (w *waiter) inspectPull(ctx context.Context, p *corev1.Pod, c corev1.ContainerStatus, waiting *corev1.ContainerStateWaiting) finding {
	message := oneLine(waiting.Message)
	if waiting.Reason == "ImagePullBackOff" && !final.MatchString(message) {
		for _, e := range w.events(ctx, p) {
			if e.Reason == "Failed" && strings.Contains(e.Message, "Failed to pull image") {
				message = oneLine(e.Message)
			}
		}
	}
	image := cmp.Or(c.Image, p.Spec.Containers[0].Image)
	return found(rankImage, final.MatchString(message), fmt.Sprintf("image %s cannot be pulled: %s", image, pullError(message, image)))
}

// wrapping is what kubelet and containerd put around the reason for a failed pull, each with the reference again.
var wrapping = regexp.MustCompile(`^(Back-off pulling image "[^"]*": |ErrImagePull: |Failed to pull image "[^"]*": |rpc error: code = \w+ desc = |` +
	`failed to pull and unpack image "[^"]*": |failed to resolve image: |failed to resolve reference "[^"]*": |failed to do request: )`)

// pullError is the reason for a failed pull without what is around it.
func pullError(message, image string) string {
	for {
		rest := strings.TrimPrefix(wrapping.ReplaceAllString(message, ""), image+": ")
		if rest == message || rest == "" {
			return shorten(message, 300)
		}
		message = rest
	}
}

// inspectCreating explains a container that is not created yet: volumes, networks.
func (w *waiter) inspectCreating(ctx context.Context, p *corev1.Pod) finding {
	if !w.longer("creating/"+string(p.UID), 3*time.Second) {
		return found(rankStarting, false, "the container is being created")
	}
	for _, e := range newestFirst(w.events(ctx, p)) {
		switch e.Reason {
		case "FailedMount", "FailedAttachVolume":
			text := oneLine(e.Message)
			return found(rankFailing, strings.Contains(text, "not found"), "a volume cannot be mounted: "+shorten(text, 300))
		case "FailedCreatePodSandBox":
			return found(rankFailing, false, "the pod's sandbox cannot be created: "+shorten(oneLine(e.Message), 300))
		case "Pulling":
			return found(rankStarting, false, "pulling the image")
		}
	}
	return found(rankStarting, false, "the container is being created")
}

// inspectCrash explains a container that has ended. Once may be chance; twice in the same way is not, and neither is a
// limit on memory or on the time to start.
func (w *waiter) inspectCrash(ctx context.Context, p *corev1.Pod, c corev1.ContainerStatus, again bool) finding {
	end := c.State.Terminated
	previous := false
	if end == nil {
		end, previous = c.LastTerminationState.Terminated, true
	}
	if end == nil {
		return found(rankFailing, again, fmt.Sprintf("container %s ends as soon as it starts", c.Name))
	}
	if end.Reason == "OOMKilled" {
		return found(rankFailing, true, fmt.Sprintf("container %s was killed for memory (OOMKilled): its limit is %s", c.Name, memoryLimit(p, c.Name)))
	}
	for _, e := range newestFirst(w.events(ctx, p)) {
		if e.Reason == "Killing" && strings.Contains(e.Message, "failed startup probe") {
			return found(rankFailing, true, fmt.Sprintf("container %s did not get ready within its startup time: %s", c.Name, w.unhealthy(ctx, p, "Startup")))
		}
		if e.Reason == "Killing" && strings.Contains(e.Message, "failed liveness probe") {
			return found(rankFailing, again, fmt.Sprintf("container %s was restarted by its liveness probe: %s", c.Name, w.unhealthy(ctx, p, "Liveness")))
		}
	}
	line := lastLineOf(end.Message)
	if line == "" {
		line = w.lastLine(ctx, p, c.Name, previous || c.State.Waiting != nil)
	}
	how := fmt.Sprintf("exit code %d", end.ExitCode)
	if end.Signal != 0 {
		how = fmt.Sprintf("signal %d", end.Signal)
	}
	if end.Reason != "" && end.Reason != "Error" && end.Reason != "Completed" {
		how += ", " + end.Reason
	}
	text := fmt.Sprintf("container %s crashed (%s, %d restarts)", c.Name, how, c.RestartCount)
	if again {
		text = fmt.Sprintf("container %s crashes again and again (CrashLoopBackOff, %s, %d restarts)", c.Name, how, c.RestartCount)
	}
	if line != "" {
		text += ": " + line
	}
	return found(rankFailing, again || c.RestartCount >= 2, text)
}

// inspectProbes explains a container that runs and is not ready.
func (w *waiter) inspectProbes(ctx context.Context, p *corev1.Pod, c corev1.ContainerStatus) finding {
	if c.State.Running == nil {
		return found(rankStarting, false, "the container is starting")
	}
	kind, text := "Readiness", "running, but not ready"
	if c.Started != nil && !*c.Started {
		kind, text = "Startup", "running, still starting"
	}
	// Events cost a request, so only for what takes a while.
	if !w.longer("probing/"+string(p.UID), 10*time.Second) {
		return finding{rank: rankProbing, text: text, silent: p, in: c.Name}
	}
	return finding{rank: rankProbing, text: text + ": " + w.unhealthy(ctx, p, kind), silent: p, in: c.Name}
}

// unhealthy is the newest answer of a probe.
func (w *waiter) unhealthy(ctx context.Context, p *corev1.Pod, kind string) string {
	text := "its " + strings.ToLower(kind) + " probe gets no good answer"
	for _, e := range newestFirst(w.events(ctx, p)) {
		if e.Reason == "Unhealthy" && strings.HasPrefix(e.Message, kind) {
			text = shorten(oneLine(e.Message), 200)
			break
		}
	}
	return text
}

func memoryLimit(p *corev1.Pod, container string) string {
	for _, c := range p.Spec.Containers {
		if q, ok := c.Resources.Limits[corev1.ResourceMemory]; ok && c.Name == container {
			return q.String()
		}
	}
	return "the node's memory"
}
