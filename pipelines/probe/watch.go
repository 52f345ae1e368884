package probe

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/greenlight-ci/greenlight/pipelines/probe/protocol"
	"github.com/greenlight-ci/greenlight/pipelines/probe/watch"
)

// Watch is a probe that watches a Service from inside the cluster while the release switches it.
type Watch struct {
	session *Session
	read    chan struct{} // closed when no event comes any more

	mu      sync.Mutex
	changed chan struct{} // closed and replaced with every event
	latest  watch.Counts
	tickAt  time.Time
	offset  time.Duration // from the probe's clock to this one
	known   bool
	failed  time.Time // the last tick, on this clock, by which a new failure had been counted
}

// Switch is how the data path followed a switch, in seconds after it.
type Switch struct {
	// FirstSeconds is when the first request that the new server answered on a fresh connection was sent.
	FirstSeconds float64 `json:"firstSeconds"`
	// LastOldSeconds is when the last request that another server answered on a fresh connection was sent: from then on all new
	// connections lead to the new server. 0 where none was.
	LastOldSeconds float64 `json:"lastOldSeconds"`
	// Requests and Failed are all that the watch counted up to now.
	Requests int `json:"requests"`
	Failed   int `json:"failed"`
	// KeptOnOld is how many kept connections' answers still came from other servers since: they move only when those drain.
	KeptOnOld int `json:"keptOnOld"`
	// ClockOffsetMillis was added to the probe's times: the least delay of an event from there to here, which is the difference
	// of the clocks and the way of the log. So the seconds are never too small by more than that difference.
	ClockOffsetMillis float64 `json:"clockOffsetMillis"`
}

// StartWatch starts a watch in the cluster and returns when its first requests have ended, so that a switch from then on is seen
// from its start. options.Command is the path of the probe's binary (default Binary), without subcommand; options.Timeout should be longer
// than the watch. Stop it in the end.
func StartWatch(ctx context.Context, options Options, what watch.Options) (*Watch, error) {
	return startWatch(ctx, options, what, nil)
}

func startWatch(ctx context.Context, options Options, what watch.Options, open openLog) (*Watch, error) {
	encoded, err := json.Marshal(what)
	if err != nil {
		return nil, fmt.Errorf("%w: encoding the watch's options: %w", ErrOptions, err)
	}
	options.Files = maps.Clone(options.Files)
	if options.Files == nil {
		options.Files = make(map[string][]byte)
	}
	options.Files["options.json"] = encoded
	if len(options.Command) == 0 {
		options.Command = []string{Binary}
	}
	options.Command = append(append([]string(nil), options.Command...), "watch", "--options", protocol.OptionsFile)
	session, err := start(ctx, options, open)
	if err != nil {
		return nil, err
	}
	w := &Watch{session: session, read: make(chan struct{}), changed: make(chan struct{})}
	go w.readEvents()
	for {
		counts, changed := w.snapshot()
		if counts.Requests > 0 {
			return w, nil
		}
		select {
		case <-changed:
		case <-w.read:
			_, err := session.Wait()
			if err == nil {
				err = fmt.Errorf("%w: the watch ended before its first request did", ErrNotRun)
			}
			return nil, err
		}
	}
}

func (w *Watch) readEvents() {
	defer close(w.read)
	for event := range w.session.Events() {
		var seen watch.Event
		if err := json.Unmarshal(event.JSON, &seen); err != nil {
			note(w.session.options.Log, err, "reading an event of the watch")
			continue
		}
		w.take(seen, event.ReceivedAt)
	}
}

func (w *Watch) take(seen watch.Event, received time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if offset := received.Sub(seen.At); !w.known || offset < w.offset {
		w.offset, w.known = offset, true
	}
	if seen.Type == watch.Tick && seen.Counts != nil {
		// A replaced pod counts from the start again.
		if seen.Counts.Failed != w.latest.Failed {
			w.failed = seen.At.Add(w.offset)
		}
		w.latest, w.tickAt = *seen.Counts, seen.At
	}
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *Watch) snapshot() (watch.Counts, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.latest, w.changed
}

// Counts are the newest.
func (w *Watch) Counts() watch.Counts {
	counts, _ := w.snapshot()
	return counts
}

// Done is closed when the watch has ended, asked or not.
func (w *Watch) Done() <-chan struct{} { return w.read }

// AwaitServed waits until all new connections lead to the server want, as they do when for the time quiet (default 1 s) all
// requests on fresh connections were answered by it and no request failed. since is the time of the switch on this machine's clock. An
// empty version or colour in want matches any.
// It ends with ctx or with the watch; the error then says what was seen last.
func (w *Watch) AwaitServed(ctx context.Context, want watch.Server, since time.Time, quiet time.Duration) (Switch, error) {
	if quiet <= 0 {
		quiet = time.Second
	}
	for {
		seen, done, changed := w.served(want, since, quiet)
		if done {
			return seen, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return seen, fmt.Errorf("new connections do not all lead to %s: %s: %w", want, w.lastSeen(), context.Cause(ctx))
		case <-w.read:
			_, err := w.session.Wait()
			if err == nil {
				err = ErrTimeout
			}
			return seen, fmt.Errorf("the watch ended before all new connections led to %s: %s: %w", want, w.lastSeen(), err)
		}
	}
}

func (w *Watch) served(want watch.Server, since time.Time, quiet time.Duration) (Switch, bool, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	seen := Switch{Requests: w.latest.Requests, Failed: w.latest.Failed, ClockOffsetMillis: float64(w.offset.Microseconds()) / 1000}
	var first, last, lastOld time.Time
	for _, server := range w.latest.Servers {
		if matches(server.Server, want) {
			if server.Fresh.Answers > 0 && (first.IsZero() || server.Fresh.FirstSent.Before(first)) {
				first = server.Fresh.FirstSent
			}
			last = later(last, server.Fresh.LastSent)
			continue
		}
		lastOld = later(lastOld, server.Fresh.LastSent)
		if server.Kept.LastSent.Add(w.offset).After(since) {
			seen.KeptOnOld += server.Kept.Answers
		}
	}
	if !first.IsZero() {
		seen.FirstSeconds = max(first.Add(w.offset).Sub(since).Seconds(), 0)
	}
	if lastOld.Add(w.offset).After(since) {
		seen.LastOldSeconds = lastOld.Add(w.offset).Sub(since).Seconds()
	}
	tick := w.tickAt.Add(w.offset)
	// Quiet counts from the last event against it: another server's answer, a failure, the first right answer, or the switch itself.
	from := later(later(since, w.failed), first.Add(w.offset))
	if !lastOld.IsZero() {
		from = later(from, lastOld.Add(w.offset))
	}
	answeredLately := !last.IsZero() && w.tickAt.Sub(last) < quiet
	return seen, !first.IsZero() && answeredLately && tick.Sub(from) >= quiet, w.changed
}

func matches(server, want watch.Server) bool {
	return (want.Version == "" || server.Version == want.Version) && (want.Colour == "" || server.Colour == want.Colour)
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// lastSeen describes the counts for a message.
func (w *Watch) lastSeen() string {
	counts := w.Counts()
	text := fmt.Sprintf("%d requests, %d failed", counts.Requests, counts.Failed)
	for _, server := range counts.Servers {
		text += fmt.Sprintf(", %d answers on new connections by %s", server.Fresh.Answers, server.Server)
	}
	return text
}

// Stop ends the watch and returns what it saw. Where its final result does not come through, the Result has the last counts and is marked by an
// error that wraps ErrNotRun.
func (w *Watch) Stop(ctx context.Context) (watch.Result, error) {
	encoded, err := w.session.Stop(ctx)
	<-w.read
	var result watch.Result
	if err == nil {
		if err = json.Unmarshal(encoded, &result); err == nil {
			return result, nil
		}
		err = fmt.Errorf("%w: reading the watch's result: %w", ErrNotRun, err)
	}
	counts := w.Counts()
	return watch.Result{Requests: counts.Requests, Failed: counts.Failed, Servers: counts.Servers}, err
}
