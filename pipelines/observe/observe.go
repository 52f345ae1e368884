// Package observe watches a version that has just taken the traffic, and says quickly when it does not bear it.
package observe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"k8s.io/client-go/kubernetes"
)

// Sentinels for errors.Is.
var (
	// ErrUnhealthy is a no: the live version does not bear the traffic. Result.Reason says why.
	ErrUnhealthy = errors.New("live version is unhealthy")
	// ErrInvalid is wrapped by errors about options.
	ErrInvalid = errors.New("invalid observe options")
)

// Sample is what an observer on the data path has counted since it started.
type Sample struct {
	// Requests were sent to the live Service, Failed of them got no valid answer.
	Requests int
	Failed   int
	// Fresh are the answers on fresh connections by the colour that gave them, Kept those on kept ones.
	Fresh map[string]int
	Kept  map[string]int
	// Failure is the newest failure, in words.
	Failure string
}

// Observer asks the live Service from where its users are.
type Observer interface {
	// Observe delivers samples, several a second, until ctx ends or there is nothing more to see, and then closes the
	// channel.
	Observe(ctx context.Context) (<-chan Sample, error)
}

// Options say what is watched and what it has to bear.
type Options struct {
	// Client talks to the cluster.
	Client kubernetes.Interface `json:"-"`
	// Observer asks the live Service. Without one, only the pods are watched.
	Observer Observer `json:"-"`
	// Log gets a line for every change. Default: none.
	Log io.Writer `json:"-"`
	// Namespace, Service and Colour say what is live.
	Namespace string `json:"namespace"`
	Service   string `json:"service"`
	Colour    string `json:"colour"`
	// Duration of the watch, in nanoseconds in JSON. Default 1 min.
	Duration time.Duration `json:"duration"`
	// MaxFailed is the share of the observer's requests that may fail, between 0 and 1. Default 0: none.
	MaxFailed float64 `json:"maxFailed"`
	// MinRequests is what MaxFailed refers to before as many have been sent, so that one failure at the beginning is
	// not 100 %. Default 100.
	MinRequests int `json:"minRequests"`
	// MaxRestarts is how many times containers may start again. Default 0.
	MaxRestarts int `json:"maxRestarts"`
	// UnreadyGrace is how long fewer than all pods may be ready, for a pod that is evicted and replaced. No ready pod
	// at all is never borne. Default 30 s.
	UnreadyGrace time.Duration `json:"unreadyGrace"`
	// StrayGrace is how long answers on fresh connections may still come from the other colour: those that were under
	// way when the traffic moved. Default 10 s.
	StrayGrace time.Duration `json:"strayGrace"`
	// SilenceLimit is how long the observer may report no request. Default 15 s.
	SilenceLimit time.Duration `json:"silenceLimit"`
}

// Result is what was seen.
type Result struct {
	// Passed says that the version bore the traffic for the whole time; if not, Reason says why in one line.
	Passed bool   `json:"passed"`
	Reason string `json:"reason,omitempty"`
	// Seconds that were watched.
	Seconds float64 `json:"seconds"`
	// Requests of the observer in that time, Failed of them failed.
	Requests int `json:"requests"`
	Failed   int `json:"failed"`
	// Answers by colour; those of the other colour came on kept connections.
	Answers map[string]int `json:"answers,omitempty"`
	// Restarts of containers in that time.
	Restarts int `json:"restarts"`
	// ReadyChanges is how often the number of ready pods changed, MinReady the lowest number.
	ReadyChanges int `json:"readyChanges"`
	MinReady     int `json:"minReady"`
	// Wanted is how many pods there should be.
	Wanted int `json:"wanted"`
}

func (o Options) withDefaults() Options {
	if o.Duration <= 0 {
		o.Duration = time.Minute
	}
	if o.MinRequests <= 0 {
		o.MinRequests = 100
	}
	if o.UnreadyGrace <= 0 {
		o.UnreadyGrace = 30 * time.Second
	}
	if o.StrayGrace <= 0 {
		o.StrayGrace = 10 * time.Second
	}
	if o.SilenceLimit <= 0 {
		o.SilenceLimit = 15 * time.Second
	}
	if o.Log == nil {
		o.Log = io.Discard
	}
	return o
}

func (o Options) validate() error {
	switch {
	case o.Client == nil || o.Namespace == "" || o.Service == "" || o.Colour == "":
		return fmt.Errorf("%w: a bake needs a client, a namespace, a service and a colour", ErrInvalid)
	case !(o.MaxFailed >= 0 && o.MaxFailed <= 1):
		return fmt.Errorf("%w: the share of requests that may fail is %v, not between 0 and 1", ErrInvalid, o.MaxFailed)
	case o.MaxRestarts < 0:
		return fmt.Errorf("%w: %d restarts", ErrInvalid, o.MaxRestarts)
	}
	return nil
}

// Run watches the live version for the duration and returns as soon as the verdict is no: errors wrap ErrUnhealthy, and
// Result is filled either way.
func Run(ctx context.Context, o Options) (Result, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return Result{}, err
	}
	started := time.Now()
	result := Result{Answers: map[string]int{}}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pods, stopped := o.watchPods(ctx)
	defer func() {
		cancel()
		<-stopped
	}()
	var samples <-chan Sample
	if o.Observer != nil {
		var err error
		if samples, err = o.Observer.Observe(ctx); err != nil {
			return result, fmt.Errorf("observing the live service: %w", err)
		}
	}
	b := &bake{o: o, result: &result, started: started, heard: started, restarts: map[string]int32{}}
	end := time.NewTimer(o.Duration)
	defer end.Stop()
	ticker := time.NewTicker(250 * time.Millisecond)
	defer ticker.Stop()
	finish := func(reason string) (Result, error) {
		result.Seconds = time.Since(started).Seconds()
		if reason == "" {
			result.Passed = true
			return result, nil
		}
		result.Reason = reason
		return result, fmt.Errorf("%w: %s after %.1f s: %s", ErrUnhealthy, o.Colour, result.Seconds, reason)
	}
	for {
		select {
		case s, ok := <-samples:
			if !ok {
				if ctx.Err() != nil {
					return result, ctx.Err()
				}
				return finish("the observer of the live service stopped")
			}
			if reason := b.sample(s, time.Now()); reason != "" {
				return finish(reason)
			}
		case p := <-pods:
			if reason := b.pods(p, time.Now()); reason != "" {
				return finish(reason)
			}
		case <-ticker.C:
			if reason := b.tick(time.Now()); reason != "" {
				return finish(reason)
			}
		case <-end.C:
			return finish(b.end())
		case <-ctx.Done():
			result.Seconds = time.Since(started).Seconds()
			return result, ctx.Err()
		}
	}
}

// bake keeps what the verdict needs.
type bake struct {
	o       Options
	result  *Result
	started time.Time

	first *Sample
	// settled is the last sample of the time in which answers of the other colour are let pass.
	settled *Sample
	// heard is when the observer's count last grew.
	heard time.Time

	seenPods bool
	ready    int
	// unready is since when fewer than all pods are ready; zero when all are.
	unready time.Time
	// restarts are the counts at the first look, by container.
	restarts map[string]int32
	// lastRestart says how the newest of them came about.
	lastRestart string
	// trouble is what stands in the way of watching.
	trouble error
}

// sample takes a count of the observer and returns a reason to stop.
func (b *bake) sample(s Sample, now time.Time) string {
	if b.first == nil {
		b.first = &s
	}
	requests, failed := s.Requests-b.first.Requests, s.Failed-b.first.Failed
	if requests > b.result.Requests {
		b.heard = now
	}
	b.result.Requests, b.result.Failed = requests, failed
	for _, counts := range []struct{ now, then map[string]int }{{s.Fresh, b.first.Fresh}, {s.Kept, b.first.Kept}} {
		for colour := range counts.now {
			b.result.Answers[colour] = s.Fresh[colour] + s.Kept[colour] - b.first.Fresh[colour] - b.first.Kept[colour]
		}
	}
	if now.Sub(b.started) < b.o.StrayGrace || b.settled == nil {
		b.settled = &s
	}
	for _, colour := range slices.Sorted(maps.Keys(s.Fresh)) {
		if n := s.Fresh[colour] - b.settled.Fresh[colour]; colour != b.o.Colour && n > 0 {
			return fmt.Sprintf("%d new connections were answered by %s, which is not live", n, name(colour))
		}
	}
	if float64(failed) > b.o.MaxFailed*float64(max(requests, b.o.MinRequests)) {
		return fmt.Sprintf("%d of %d requests failed, %s may: %s", failed, requests, share(b.o.MaxFailed), s.Failure)
	}
	return ""
}

func name(colour string) string {
	if colour == "" {
		return "something that names no colour"
	}
	return colour
}

func share(f float64) string {
	if f == 0 {
		return "none"
	}
	return strings.TrimRight(strings.TrimRight(fmt.Sprintf("%.3f", f*100), "0"), ".") + " %"
}

// tick returns a reason to stop that lies in time passing.
func (b *bake) tick(now time.Time) string {
	if b.o.Observer != nil && now.Sub(b.heard) > b.o.SilenceLimit {
		return fmt.Sprintf("the observer of the live service has reported no request for %s", b.o.SilenceLimit)
	}
	if !b.seenPods && now.Sub(b.started) > b.o.SilenceLimit {
		return fmt.Sprintf("the pods could not be watched for %s: %s", b.o.SilenceLimit, b.blindness())
	}
	if b.seenPods && !b.unready.IsZero() && now.Sub(b.unready) > b.o.UnreadyGrace {
		return fmt.Sprintf("%d of %d pods have been ready for more than %s", b.ready, b.result.Wanted, b.o.UnreadyGrace)
	}
	return ""
}

// blindness is why nothing has been seen yet.
func (b *bake) blindness() string {
	if b.trouble == nil {
		return "the API server has not listed them in time"
	}
	return b.trouble.Error()
}

// end is the verdict when the time is up.
func (b *bake) end() string {
	switch {
	case !b.seenPods:
		return "the pods could not be watched: " + b.blindness()
	case b.o.Observer != nil && b.result.Requests == 0:
		return "the observer of the live service made no request"
	case b.ready < b.result.Wanted:
		return fmt.Sprintf("%d of %d pods are ready at the end", b.ready, b.result.Wanted)
	}
	return ""
}
