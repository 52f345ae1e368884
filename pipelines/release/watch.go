package release

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/greenlight-ci/greenlight/pipelines/observe"
	"github.com/greenlight-ci/greenlight/pipelines/probe"
	"github.com/greenlight-ci/greenlight/pipelines/probe/watch"
	"github.com/greenlight-ci/greenlight/pipelines/traffic"
)

// errBlind says that the release cannot see the live Service, so that it must not change it.
var errBlind = errors.New("the watch on the live Service ended")

// A watcher is the release's own look at the live Service, from inside the cluster: the probe sends requests on fresh and
// on kept connections and reports ten times a second who answered and what failed.
type watcher struct {
	session *probe.Session

	mu     sync.Mutex
	counts watch.Counts
	// firstFailure is the reason of the first failed request.
	firstFailure string
	// skew is what has to be added to the probe's times to have this machine's: the least that an event took to arrive.
	skew     time.Duration
	skewSeen bool
	// tick is closed, and replaced, when counts have changed.
	tick chan struct{}
}

// startWatch starts the probe on the live Service and waits until it has an answer.
func (r *run) startWatch(ctx context.Context, limit time.Duration) (*watcher, error) {
	request, err := r.request()
	if err != nil {
		return nil, err
	}
	options, err := json.Marshal(watch.Options{
		URL: r.liveURL(), Request: request, Rate: r.Config.Switch.ProbeRate, Arrivals: "constant",
		Timeout: r.Config.Latency.Timeout.Std(), Duration: limit,
	})
	if err != nil {
		return nil, fmt.Errorf("preparing the watch: %w", err)
	}
	session, err := probe.Start(ctx, r.probe("watch", options, limit+leeway))
	if err != nil {
		return nil, fmt.Errorf("watching the live Service: %w", err)
	}
	w := &watcher{session: session, tick: make(chan struct{})}
	go w.read()
	bounded, cancel := context.WithTimeout(ctx, leeway)
	defer cancel()
	err = w.until(bounded, func(c watch.Counts) bool { return len(c.Servers) > 0 })
	if err != nil {
		w.close()
		return nil, fmt.Errorf("watching the live Service: %w", err)
	}
	return w, nil
}

func (w *watcher) read() {
	for e := range w.session.Events() {
		var event watch.Event
		if json.Unmarshal(e.JSON, &event) != nil {
			continue
		}
		w.mu.Lock()
		if took := e.ReceivedAt.Sub(event.At); !w.skewSeen || took < w.skew {
			w.skew, w.skewSeen = took, true
		}
		if event.Type == watch.Failure && w.firstFailure == "" {
			w.firstFailure = event.Reason
		}
		if event.Counts != nil {
			w.counts = *event.Counts
			close(w.tick)
			w.tick = make(chan struct{})
		}
		w.mu.Unlock()
	}
}

// until waits for counts that satisfy the condition.
func (w *watcher) until(ctx context.Context, condition func(watch.Counts) bool) error {
	for {
		w.mu.Lock()
		counts, tick := w.counts, w.tick
		w.mu.Unlock()
		if condition(counts) {
			return nil
		}
		select {
		case <-tick:
		case <-w.session.Done():
			_, err := w.session.Wait()
			return errors.Join(errBlind, err)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// last is what was counted up to now.
func (w *watcher) last() watch.Counts {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.counts
}

// stop ends the probe and returns all that it saw.
func (w *watcher) stop(ctx context.Context) (watch.Result, error) {
	var found watch.Result
	answer, err := w.session.Stop(ctx)
	if err != nil {
		return found, fmt.Errorf("ending the watch on the live Service: %w", err)
	}
	if err := json.Unmarshal(answer, &found); err != nil {
		return found, fmt.Errorf("reading what the watch on the live Service saw: %w", err)
	}
	return found, nil
}

// close ends the probe if it still runs. It may be called on nil.
func (w *watcher) close() {
	if w == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, _ = w.session.Stop(ctx)
}

// samples delivers what was seen whenever there is more, until ctx ends or the watch does.
func (w *watcher) samples(ctx context.Context, deliver func(counts watch.Counts, failure string, skew time.Duration) bool) {
	for {
		w.mu.Lock()
		counts, failure, skew, tick := w.counts, w.firstFailure, w.skew, w.tick
		w.mu.Unlock()
		if counts.Requests > 0 && !deliver(counts, failure, skew) {
			return
		}
		select {
		case <-tick:
		case <-w.session.Done():
			return
		case <-ctx.Done():
			return
		}
	}
}

// trafficObserver and bakeObserver show the watch to the stages in their own words.
type (
	trafficObserver struct{ watcher *watcher }
	bakeObserver    struct{ watcher *watcher }
)

func (o trafficObserver) Observe(ctx context.Context) (<-chan traffic.Sample, error) {
	out := make(chan traffic.Sample)
	go func() {
		defer close(out)
		o.watcher.samples(ctx, func(c watch.Counts, failure string, skew time.Duration) bool {
			sample := traffic.Sample{Requests: c.Requests, Failed: c.Failed, Failure: failure, LastFresh: map[string]time.Time{}}
			sample.Fresh, sample.Kept = byColour(c)
			for _, s := range c.Servers {
				if at := s.Fresh.LastSent.Add(skew); s.Fresh.Answers > 0 && at.After(sample.LastFresh[s.Colour]) {
					sample.LastFresh[s.Colour] = at
				}
			}
			return send(ctx, out, sample)
		})
	}()
	return out, nil
}

func (o bakeObserver) Observe(ctx context.Context) (<-chan observe.Sample, error) {
	out := make(chan observe.Sample)
	go func() {
		defer close(out)
		o.watcher.samples(ctx, func(c watch.Counts, failure string, _ time.Duration) bool {
			sample := observe.Sample{Requests: c.Requests, Failed: c.Failed, Failure: failure}
			sample.Fresh, sample.Kept = byColour(c)
			return send(ctx, out, sample)
		})
	}()
	return out, nil
}

func send[T any](ctx context.Context, out chan<- T, value T) bool {
	select {
	case out <- value:
		return true
	case <-ctx.Done():
		return false
	}
}

func byColour(c watch.Counts) (fresh, kept map[string]int) {
	fresh, kept = map[string]int{}, map[string]int{}
	for _, s := range c.Servers {
		fresh[s.Colour] += s.Fresh.Answers
		kept[s.Colour] += s.Kept.Answers
	}
	return fresh, kept
}
