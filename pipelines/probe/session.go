// Package probe runs the probe (cmd/greenlight-probe) as a Job in the cluster, where the Services are, and brings back what it says:
// its result, its events while it runs, and its log. Whatever happens, the Job goes: by its end here, or, where the release dies, by
// its deadline and its TTL.
//
// It needs these permissions in the namespace: jobs create, get, list, watch, delete; configmaps create, delete; pods list, watch, delete;
// pods/log get; events list (for better messages only).
package probe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/greenlight-ci/greenlight/pipelines/probe/protocol"
)

// Event is one event of the probe as it came.
type Event struct {
	// JSON is the event.
	JSON json.RawMessage
	// ReceivedAt is when its line was read here.
	ReceivedAt time.Time
}

// Session is a probe that runs.
type Session struct {
	options Options
	name    string
	cancel  context.CancelFunc
	events  chan Event
	done    chan struct{}
	stop    sync.Once

	mu      sync.Mutex
	result  []byte
	stopped bool
	lines   []string // the last lines of the log that are no events

	// Set before done is closed.
	err error
}

// Run runs a probe to its end and returns its result's JSON. The errors wrap ErrOptions, ErrImage, ErrTimeout or ErrNotRun, or are the API server's.
func Run(ctx context.Context, options Options) ([]byte, error) {
	session, err := Start(ctx, options)
	if err != nil {
		return nil, err
	}
	return session.Wait()
}

// Start creates the Job and returns at once. The session ends with the probe, with Stop, or with ctx; until then it must
// not be forgotten.
func Start(ctx context.Context, options Options) (*Session, error) {
	return start(ctx, options, nil)
}

func start(ctx context.Context, options Options, open openLog) (*Session, error) {
	if err := options.complete(); err != nil {
		return nil, err
	}
	if open == nil {
		open = podLog(options)
	}
	job, err := create(ctx, options)
	if err != nil {
		if job != nil {
			remove(ctx, options, job.Name)
		}
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, options.Timeout, ErrTimeout)
	s := &Session{options: options, name: job.Name, cancel: cancel, events: make(chan Event, 4096), done: make(chan struct{})}
	go func() {
		defer cancel()
		err := follow(ctx, s, open)
		remove(ctx, options, s.name)
		s.mu.Lock()
		if s.result != nil {
			err = nil
		}
		s.mu.Unlock()
		s.err = err
		close(s.events)
		close(s.done)
	}()
	return s, nil
}

// Name is the Job's name.
func (s *Session) Name() string { return s.name }

// Events are the probe's events, closed at the end. Where nobody reads them, the oldest are lost.
func (s *Session) Events() <-chan Event { return s.events }

// Done is closed when the session has ended and everything is removed.
func (s *Session) Done() <-chan struct{} { return s.done }

// Wait returns the result when the session has ended.
func (s *Session) Wait() ([]byte, error) {
	<-s.done
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.result, s.err
}

// Stop asks the probe to end, and returns its result as Wait does. The probe gets SIGTERM by the deletion of its pod, and some seconds to
// write its result. Where the result did not come through, the error wraps ErrNotRun.
func (s *Session) Stop(ctx context.Context) ([]byte, error) {
	s.stop.Do(func() {
		s.mu.Lock()
		s.stopped = true
		s.mu.Unlock()
		deleting, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		// The Job first: it would replace a pod that goes.
		background := metav1.DeletePropagationBackground
		err := s.options.Client.BatchV1().Jobs(s.options.Namespace).Delete(deleting, s.name, metav1.DeleteOptions{PropagationPolicy: &background})
		if err == nil {
			err = s.options.Client.CoreV1().Pods(s.options.Namespace).DeleteCollection(deleting, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: labelProbe + "=" + s.name})
		}
		if note(s.options.Log, ignoreGone(err), "stopping the probe %s/%s", s.options.Namespace, s.name) {
			s.cancel()
		}
	})
	// The log can end a little after the pod; a kubelet that does not answer must not hold the release.
	timer := time.NewTimer(stopGrace + 5*time.Second)
	defer timer.Stop()
	select {
	case <-s.done:
	case <-timer.C:
		s.cancel()
	case <-ctx.Done():
		s.cancel()
	}
	return s.Wait()
}

func (s *Session) isStopped() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopped
}

func (s *Session) hasResult() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.result != nil
}

// line takes one line of the probe's log.
func (s *Session) line(line []byte) {
	if event, ok := protocol.Cut(line, protocol.EventPrefix); ok {
		s.send(Event{JSON: json.RawMessage(append([]byte(nil), event...)), ReceivedAt: time.Now()})
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if result, ok := protocol.Cut(line, protocol.ResultPrefix); ok {
		s.result = append([]byte(nil), result...)
		return
	}
	const keep = 5
	text := string(line[:min(len(line), 500)])
	if s.lines = append(s.lines, text); len(s.lines) > keep {
		s.lines = s.lines[1:]
	}
	fmt.Fprintln(s.options.Log, text)
}

// send never waits: the newest events are worth more than the oldest, and a slow reader must not hold the log.
func (s *Session) send(event Event) {
	for {
		select {
		case s.events <- event:
			return
		default:
		}
		select {
		case <-s.events:
		default:
		}
	}
}

// lastLine is the last line of the log that is no event, which is where a command says why it failed.
func (s *Session) lastLine() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.lines) == 0 {
		return "its log is empty"
	}
	return s.lines[len(s.lines)-1]
}

func ignoreGone(err error) error {
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}

// note logs an error that changes nothing, and tells whether there was one.
func note(log io.Writer, err error, format string, args ...any) bool {
	if err == nil || errors.Is(err, context.Canceled) {
		return err != nil
	}
	fmt.Fprintf(log, format+": %v\n", append(args, err)...)
	return true
}
