package deploy

import (
	"context"
	"io"
	"sort"
	"strings"
	"time"
	"unicode"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
)

// podReader reads what a pod's status does not say. It explains; it fails silently, since an explanation that is
// missing must not end a release.
type podReader struct {
	client kubernetes.Interface
	listed map[string]listedEvents
}

type listedEvents struct {
	at     time.Time
	events []corev1.Event
}

// events returns the pod's events, oldest first, at most three seconds old.
func (r *podReader) events(ctx context.Context, p *corev1.Pod) []corev1.Event {
	key := string(p.UID)
	if l, ok := r.listed[key]; ok && time.Since(l.at) < 3*time.Second {
		return l.events
	}
	list, err := r.client.CoreV1().Events(p.Namespace).List(ctx, metav1.ListOptions{
		FieldSelector: fields.Set{"involvedObject.kind": "Pod", "involvedObject.uid": key}.String(), Limit: 200,
	})
	l := listedEvents{at: time.Now(), events: r.listed[key].events}
	if err == nil {
		l.events = nil
		for _, e := range list.Items {
			if e.InvolvedObject.UID == p.UID {
				l.events = append(l.events, e)
			}
		}
		sort.SliceStable(l.events, func(i, j int) bool { return eventTime(l.events[i]).Before(eventTime(l.events[j])) })
	}
	r.listed[key] = l
	return l.events
}

// lastLine returns the last line of a container's log, or "".
func (r *podReader) lastLine(ctx context.Context, p *corev1.Pod, container string, previous bool) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	lines := int64(10)
	stream, err := r.client.CoreV1().Pods(p.Namespace).GetLogs(p.Name, &corev1.PodLogOptions{
		Container: container, Previous: previous, TailLines: &lines,
	}).Stream(ctx)
	if err != nil {
		return ""
	}
	defer stream.Close()
	b, _ := io.ReadAll(io.LimitReader(stream, 64<<10))
	return lastLineOf(string(b))
}

func eventTime(e corev1.Event) time.Time {
	switch {
	case e.Series != nil:
		return e.Series.LastObservedTime.Time
	case !e.LastTimestamp.IsZero():
		return e.LastTimestamp.Time
	default:
		return e.EventTime.Time
	}
}

func newestFirst(events []corev1.Event) []corev1.Event {
	out := make([]corev1.Event, 0, len(events))
	for i := len(events) - 1; i >= 0; i-- {
		out = append(out, events[i])
	}
	return out
}

// lastLineOf returns the last line that holds something, fit for a message.
func lastLineOf(text string) string {
	lines := strings.Split(text, "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		if line := oneLine(lines[i]); line != "" {
			return shorten(line, 200)
		}
	}
	return ""
}

// oneLine makes text of unknown origin fit into one line: whitespace is folded and control characters, with which a log
// could repaint a terminal, are dropped.
func oneLine(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && !unicode.IsSpace(r) {
			return -1
		}
		return r
	}, text)
	return strings.Join(strings.Fields(text), " ")
}

// shorten cuts text to n characters.
func shorten(text string, n int) string {
	if r := []rune(text); len(r) > n {
		return string(r[:n]) + "…"
	}
	return text
}
