// Package watch sends steady open-loop load to one URL, half of it on fresh connections and half on kept ones, and records who answers
// and what fails. It is how a release learns that the data path has followed the switch, since the API server only knows
// what should happen; and it is the load under which a release is tested. Every request that gets no complete, valid answer is a failure;
// see package infer for what is never repeated behind the caller's back.
package watch

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/greenlight-ci/greenlight/pipelines/probe/infer"
	"github.com/greenlight-ci/greenlight/pipelines/probe/jsonpath"
	"github.com/greenlight-ci/greenlight/pipelines/probe/openloop"
)

// ErrOptions is wrapped by errors about the options: nothing was sent.
var ErrOptions = errors.New("watch options")

const (
	// MaxDuration bounds how long a watch may run.
	MaxDuration = 24 * time.Hour
	// DefaultDuration is how long it runs where nothing else is asked.
	DefaultDuration = 10 * time.Minute
)

// Options are what Run needs. Durations are nanoseconds in JSON.
type Options struct {
	// URL is the Service. Required.
	URL string `json:"url"`
	// Request is sent every time. A zero Request is GET /ready with its fields version and colour, and no check of outputs.
	Request infer.Request `json:"request,omitzero"`
	// Outputs is the JSON path of the numbers that every answer must have. Default $.outputs, "-" for none.
	Outputs string `json:"outputs,omitempty"`
	// Rate is the mean number of requests per second, fresh and kept together. Default 50.
	Rate float64 `json:"rate,omitempty"`
	// Arrivals is "poisson" (default) or "constant".
	Arrivals string `json:"arrivals,omitempty"`
	// KeptConnections is how many connections are kept open. Default 4.
	KeptConnections int `json:"keptConnections,omitempty"`
	// FreshInFlight is how many requests on fresh connections may be in flight. Default 64.
	FreshInFlight int `json:"freshInFlight,omitempty"`
	// Timeout is for one request, from its scheduled time. Default 5 s.
	Timeout time.Duration `json:"timeout,omitempty"`
	// Duration is when the watch ends by itself. Default 10 min, at most 24 h.
	Duration time.Duration `json:"duration,omitempty"`
	// MaxRequests ends the watch too. Default: what Rate makes in Duration.
	MaxRequests int `json:"maxRequests,omitempty"`
	// TickEvery is the time between two Tick events. Default 100 ms.
	TickEvery time.Duration `json:"tickEvery,omitempty"`
	// MaxFailures is how many failures are recorded one by one; all are counted. Default 50.
	MaxFailures int `json:"maxFailures,omitempty"`
	// Seed makes the arrival times repeatable. 0: from the clock.
	Seed uint64 `json:"seed,omitempty"`
	// OnEvent is told what happens while it happens, by one goroutine at a time. nil: nobody.
	OnEvent func(Event) `json:"-"`
	// Stop, closed, ends the watch in good order: requests in flight are awaited. nil: only Duration and MaxRequests end it.
	Stop <-chan struct{} `json:"-"`
}

func (o *Options) complete() (jsonpath.Path, bool, error) {
	if o.Request.Method == "" && o.Request.Path == "" && len(o.Request.Body) == 0 {
		o.Request = infer.Request{Method: "GET", Path: "/ready"}
		setDefault(&o.Outputs, "-")
	}
	setDefault(&o.Rate, 50)
	setDefault(&o.Arrivals, openloop.Poisson)
	setDefault(&o.KeptConnections, 4)
	setDefault(&o.FreshInFlight, 64)
	setDefault(&o.Timeout, 5*time.Second)
	setDefault(&o.Duration, DefaultDuration)
	setDefault(&o.TickEvery, 100*time.Millisecond)
	setDefault(&o.MaxFailures, 50)
	setDefault(&o.Seed, uint64(time.Now().UnixNano()))
	if o.OnEvent == nil {
		o.OnEvent = func(Event) {}
	}
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{ErrOptions}, args...)...)
	}
	outputs, check, err := infer.OutputsPath(o.Outputs)
	if err != nil {
		return outputs, check, bad("outputs: %w", err)
	}
	if err := (openloop.Schedule{Rate: o.Rate, Arrivals: o.Arrivals}).Check(); err != nil {
		return outputs, check, bad("%w", err)
	}
	switch {
	case o.KeptConnections < 1 || o.KeptConnections > 1024 || o.FreshInFlight < 1 || o.FreshInFlight > 4096:
		return outputs, check, bad("keptConnections must be 1 to 1024 and freshInFlight 1 to 4096")
	case o.Timeout < 0 || o.Duration < 0 || o.Duration > MaxDuration:
		return outputs, check, bad("duration must be at most %s, and it and timeout not negative", MaxDuration)
	case o.TickEvery < 10*time.Millisecond:
		return outputs, check, bad("tickEvery must be at least 10 ms")
	case o.MaxRequests < 0 || o.MaxFailures < 0 || o.MaxFailures > 1000:
		return outputs, check, bad("maxRequests must not be negative, and maxFailures 0 to 1000")
	}
	return outputs, check, nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// watcher is one running watch.
type watcher struct {
	options      Options
	outputs      jsonpath.Path
	checkOutputs bool
	fresh        *infer.Client
	kept         []*infer.Client // one connection each, so that none of them is left unused
	tally        *tally
}

// Run sends the load until Stop, Duration or MaxRequests ends it. Failed requests are no error: the Result counts them. An ended ctx
// is like Stop, except that requests in flight are given up and not counted.
func Run(ctx context.Context, options Options) (Result, error) {
	w, err := newWatcher(options)
	if err != nil {
		return Result{}, err
	}
	defer w.close()
	options = w.options
	ticking, ended, enough := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ticking)
		ticker := time.NewTicker(options.TickEvery)
		defer ticker.Stop()
		stop, timeUp := options.Stop, time.After(options.Duration)
		end := func() {
			close(enough)
			stop, timeUp = nil, nil
		}
		for {
			select {
			case <-ended:
				return
			case <-stop:
				end()
			case <-timeUp:
				end()
			case <-ticker.C:
				w.tally.tick()
			}
		}
	}()
	w.tally.start()
	schedule := openloop.Schedule{Rate: options.Rate, Arrivals: options.Arrivals, Seed: options.Seed}
	_, late := openloop.Run(ctx, schedule, []openloop.Lane{w.freshLane(), w.keptLane()}, options.MaxRequests, enough)
	close(ended)
	<-ticking
	w.tally.tick()
	return w.tally.result(late), nil
}

func newWatcher(options Options) (*watcher, error) {
	w := &watcher{}
	var err error
	if w.outputs, w.checkOutputs, err = options.complete(); err != nil {
		return nil, err
	}
	w.options = options
	w.tally = newTally(options)
	if w.fresh, err = infer.NewClient(options.URL, infer.Options{Timeout: options.Timeout, Fresh: true}); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrOptions, err)
	}
	for range options.KeptConnections {
		client, err := infer.NewClient(options.URL, infer.Options{Timeout: options.Timeout, Connections: 1})
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrOptions, err)
		}
		w.kept = append(w.kept, client)
	}
	return w, nil
}

func (w *watcher) close() {
	w.fresh.Close()
	for _, client := range w.kept {
		client.Close()
	}
}

func (w *watcher) freshLane() openloop.Lane {
	return openloop.Lane{
		Workers: w.options.FreshInFlight, MaxWait: w.options.Timeout, Dropped: w.dropped(true),
		Call: func(ctx context.Context, arrival openloop.Arrival) { w.send(ctx, w.fresh, arrival, true) },
	}
}

func (w *watcher) keptLane() openloop.Lane {
	return openloop.Lane{
		Workers: len(w.kept), MaxWait: w.options.Timeout, Dropped: w.dropped(false),
		Call: func(ctx context.Context, arrival openloop.Arrival) {
			w.send(ctx, w.kept[arrival.Worker], arrival, false)
		},
	}
}

func (w *watcher) dropped(fresh bool) func(openloop.Arrival) {
	return func(arrival openloop.Arrival) {
		w.tally.add(record{fresh: fresh, scheduled: arrival.Scheduled, sent: time.Now(), failure: &infer.Failure{
			Kind:   infer.NotSent,
			Reason: fmt.Sprintf("not sent: every connection was busy for %s", w.options.Timeout),
		}})
	}
}

func (w *watcher) send(ctx context.Context, client *infer.Client, arrival openloop.Arrival, fresh bool) {
	sent := time.Now()
	answer, err := client.Do(ctx, w.options.Request, 200)
	if err == nil && w.checkOutputs {
		_, err = infer.Outputs(answer.Document, w.outputs)
	}
	if infer.KindOf(err) == infer.Cancelled {
		return
	}
	w.tally.add(record{
		fresh: fresh, scheduled: arrival.Scheduled, sent: sent, spent: time.Since(arrival.Scheduled), redialled: answer.Redialled,
		server: Server{Version: answer.Version, Colour: answer.Colour}, failure: err,
	})
}
