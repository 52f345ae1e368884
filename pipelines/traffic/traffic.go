// Package traffic moves live traffic from one colour to the other and back, and believes only what the data path shows:
// that the API server has accepted a change says nothing about where the next connection leads.
package traffic

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
	// ErrRefused is wrapped when the traffic was left where it is because moving it would not have been safe: the
	// target has too few ready pods, or what is live is not what was expected.
	ErrRefused = errors.New("traffic not moved")
	// ErrUnconfirmed is wrapped when the router accepted the change but the data path does not show it. The traffic
	// may be on either colour: move it back.
	ErrUnconfirmed = errors.New("switch not confirmed by the data path")
	// ErrUnsupported is wrapped when a router cannot do what was asked of it.
	ErrUnsupported = errors.New("not supported by the router")
	// ErrInvalid is wrapped by errors about options; nothing has been changed.
	ErrInvalid = errors.New("invalid traffic options")
)

// Weights are percentages by colour; those that matter add up to 100.
type Weights map[string]int

// Router moves live traffic between colours.
type Router interface {
	// Name is the router's name in the config.
	Name() string
	// Weights are the ones in force. Empty: there is no live traffic yet.
	Weights(ctx context.Context) (Weights, error)
	// Shift moves the traffic. It leaves everything as it is (ErrRefused) when a colour that would get traffic has
	// fewer than the ready pods it needs, and does nothing when the weights are in force already.
	Shift(ctx context.Context, to Weights) error
	// Capabilities say what Shift can do.
	Capabilities() Capabilities
}

// Capabilities of a router.
type Capabilities struct {
	// Weighted: any weights; otherwise only all or nothing.
	Weighted bool `json:"weighted"`
	// Mirror: copies of requests can be sent to the candidate.
	Mirror bool `json:"mirror"`
	// Match: requests can be chosen by header or cookie.
	Match bool `json:"match"`
}

// Settings are what every router is made from.
type Settings struct {
	// Client talks to the cluster.
	Client kubernetes.Interface `json:"-"`
	// Namespace and Service say whose traffic.
	Namespace string `json:"namespace"`
	Service   string `json:"service"`
	// MinReady is how many ready pods a colour needs to get traffic. Default 1. A release asks for all of the
	// candidate's; a rollback for one, since one pod that answers is better than a version that does not.
	MinReady int `json:"minReady"`
}

// New makes the router of that name. Errors wrap ErrInvalid.
func New(name string, s Settings) (Router, error) {
	makers := map[string]func(Settings) Router{
		"service": newServiceRouter,
	}
	make, ok := makers[name]
	if !ok {
		return nil, fmt.Errorf("%w: there is no router %q; there is: %s", ErrInvalid, name, strings.Join(slices.Sorted(maps.Keys(makers)), ", "))
	}
	if s.Client == nil || s.Namespace == "" || s.Service == "" {
		return nil, fmt.Errorf("%w: a router needs a client, a namespace and a service", ErrInvalid)
	}
	s.MinReady = max(s.MinReady, 1)
	return make(s), nil
}

// Sample is what an observer on the data path has counted since it started.
type Sample struct {
	// Requests were sent to the live Service, Failed of them got no valid answer.
	Requests int
	Failed   int
	// Fresh are the answers on fresh connections by the colour that gave them, Kept those on kept ones.
	Fresh map[string]int
	Kept  map[string]int
	// LastFresh is when the last request on a fresh connection that each colour answered was sent, by the clock of
	// this machine. It may be missing: then the time at which the sample came stands in for it.
	LastFresh map[string]time.Time
	// Failure is the newest failure, in words.
	Failure string
}

// Observer asks the live Service from where its users are, on fresh connections and on kept ones.
type Observer interface {
	// Observe delivers samples, several a second, until ctx ends or there is nothing more to see, and then closes the
	// channel.
	Observe(ctx context.Context) (<-chan Sample, error)
}

// Options say what Run moves.
type Options struct {
	// Router moves the traffic.
	Router Router `json:"-"`
	// Observer sees where it goes.
	Observer Observer `json:"-"`
	// Log gets a line for every step. Default: none.
	Log io.Writer `json:"-"`
	// From and To are colours. From is what must be live before; a router that is at To already is only confirmed.
	From string `json:"from"`
	To   string `json:"to"`
	// Timeout is how long new connections may take to arrive at To, in nanoseconds in JSON. Default 30 s.
	Timeout time.Duration `json:"timeout"`
	// Settle is for how long no new connection may have reached From before the switch counts as done. Default 1 s.
	Settle time.Duration `json:"settle"`
	// Quorum is how many answers on fresh connections To must have given in that time. Default 10.
	Quorum int `json:"quorum"`
	// GiveUpAfter is for how long requests may fail with no answer from To in between. Default 2 s.
	GiveUpAfter time.Duration `json:"giveUpAfter"`
}

// Result is what the switch did, as the data path saw it.
type Result struct {
	Router string `json:"router"`
	From   string `json:"from"`
	To     string `json:"to"`
	// Moved says that the router accepted the change; traffic may be on To even if Run returns an error.
	Moved bool `json:"moved"`
	// Confirmed says that the data path shows it.
	Confirmed bool `json:"confirmed"`
	// Requests were watched from before the change until it was confirmed, Failed of them failed.
	Requests int `json:"requests"`
	Failed   int `json:"failed"`
	// Seconds from the command until the last new connection reached From.
	Seconds float64 `json:"seconds"`
	// CommandSeconds of it were spent until the API server had accepted the change.
	CommandSeconds float64 `json:"commandSeconds"`
	// KeptOnFrom are answers that From gave on kept connections after the change: these clients move when From drains.
	KeptOnFrom int `json:"keptOnFrom"`
	// Failure is the newest failure, in words.
	Failure string `json:"failure,omitempty"`
}

func (o Options) withDefaults() Options {
	if o.Timeout <= 0 {
		o.Timeout = 30 * time.Second
	}
	if o.Settle <= 0 {
		o.Settle = time.Second
	}
	if o.Quorum <= 0 {
		o.Quorum = 10
	}
	if o.GiveUpAfter <= 0 {
		o.GiveUpAfter = 2 * time.Second
	}
	if o.Log == nil {
		o.Log = io.Discard
	}
	return o
}

// Run moves all live traffic from one colour to the other and returns when the data path shows that new connections
// arrive there. A rollback is the same with From and To exchanged.
//
// Before the change it waits for the observer to have seen something, whether good or bad: what cannot be seen is not
// switched. Errors wrap ErrRefused (nothing was moved), ErrUnconfirmed (Result.Moved is true), or ErrInvalid.
func Run(ctx context.Context, o Options) (Result, error) {
	o = o.withDefaults()
	if o.Router == nil || o.Observer == nil || o.From == "" || o.To == "" || o.From == o.To {
		return Result{}, fmt.Errorf("%w: a switch needs a router, an observer and two colours", ErrInvalid)
	}
	result := Result{Router: o.Router.Name(), From: o.From, To: o.To}
	weights, err := o.Router.Weights(ctx)
	if err != nil {
		return result, fmt.Errorf("reading where the traffic is: %w", err)
	}
	if weights[o.From] != 100 && weights[o.To] != 100 {
		return result, fmt.Errorf("%w: neither %s nor %s has all of the traffic (%v)", ErrRefused, o.From, o.To, weights)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	samples, err := o.Observer.Observe(ctx)
	if err != nil {
		return result, fmt.Errorf("%w: the live service cannot be observed: %w", ErrRefused, err)
	}
	first, err := firstSample(ctx, samples, o.Timeout)
	if err != nil {
		return result, err
	}
	if first.Failed > 0 {
		fmt.Fprintf(o.Log, "before the switch %d of %d requests to live failed: %s\n", first.Failed, first.Requests, first.Failure)
	}
	started := time.Now()
	err = o.Router.Shift(ctx, Weights{o.To: 100, o.From: 0})
	result.CommandSeconds = time.Since(started).Seconds()
	if err != nil {
		// After an unclear answer, such as a broken connection, the change may have been made.
		result.Moved = !errors.Is(err, ErrRefused) && !errors.Is(err, ErrUnsupported)
		return result, fmt.Errorf("moving the traffic to %s: %w", o.To, err)
	}
	result.Moved = true
	fmt.Fprintf(o.Log, "%s: %s -> %s accepted after %.0f ms\n", result.Router, o.From, o.To, result.CommandSeconds*1000)
	err = o.confirm(ctx, samples, first, started, &result)
	if err == nil {
		fmt.Fprintf(o.Log, "%s: new connections are on %s after %.2f s (%d requests, %d failed)\n", result.Router, o.To, result.Seconds, result.Requests, result.Failed)
	}
	return result, err
}

// firstSample waits until the observer has seen a request end.
func firstSample(ctx context.Context, samples <-chan Sample, limit time.Duration) (Sample, error) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		select {
		case s, ok := <-samples:
			if !ok {
				return s, fmt.Errorf("%w: the observer of the live service stopped before it saw anything", ErrRefused)
			}
			if s.Requests > 0 {
				return s, nil
			}
		case <-timer.C:
			return Sample{}, fmt.Errorf("%w: the observer of the live service saw nothing within %s", ErrRefused, limit)
		case <-ctx.Done():
			return Sample{}, fmt.Errorf("%w: %w", ErrRefused, ctx.Err())
		}
	}
}

// minFailures in a row are not chance.
const minFailures = 5

// confirm watches until From has got no new connection for a while in which To answered many.
func (o Options) confirm(ctx context.Context, samples <-chan Sample, first Sample, started time.Time, result *Result) error {
	deadline := time.NewTimer(o.Timeout)
	defer deadline.Stop()
	var (
		last      = first
		lastOld   = started // when From was last seen on a fresh connection
		base      = first   // the sample after which To's answers count
		lastGood  = first
		goodAt    = started
		exactOld  time.Time
		unsettled = func(why string) error {
			return fmt.Errorf("%w: %s -> %s: %s", ErrUnconfirmed, o.From, o.To, why)
		}
	)
	for {
		select {
		case s, ok := <-samples:
			if !ok {
				return unsettled("the observer stopped")
			}
			now := time.Now()
			if s.Fresh[o.From] > last.Fresh[o.From] {
				lastOld, base = now, s
				exactOld = s.LastFresh[o.From]
			}
			if s.Fresh[o.To] > last.Fresh[o.To] {
				lastGood, goodAt = s, now
			}
			last = s
			result.Requests, result.Failed = s.Requests-first.Requests, s.Failed-first.Failed
			result.KeptOnFrom = s.Kept[o.From] - first.Kept[o.From]
			result.Failure = s.Failure
			// A gap of a moment is for the report; a target that does not answer at all is not waited for.
			if s.Failed-lastGood.Failed >= minFailures && now.Sub(goodAt) >= o.GiveUpAfter {
				return unsettled(fmt.Sprintf("%d requests in a row failed: %s", s.Failed-lastGood.Failed, s.Failure))
			}
			if now.Sub(lastOld) >= o.Settle && s.Fresh[o.To]-base.Fresh[o.To] >= o.Quorum {
				result.Confirmed = true
				result.Seconds = arrival(started, lastOld, exactOld)
				return nil
			}
		case <-deadline.C:
			return unsettled(fmt.Sprintf("within %s, %s answered %d new connections and %s %d, and %d requests failed (%s)", o.Timeout,
				o.From, last.Fresh[o.From]-first.Fresh[o.From], o.To, last.Fresh[o.To]-first.Fresh[o.To], last.Failed-first.Failed, last.Failure))
		case <-ctx.Done():
			return unsettled(ctx.Err().Error())
		}
	}
}

// arrival is how long new connections reached the old colour: by the observer's record where that is plausible, else by
// when its sample came, which is later.
func arrival(started, seen, exact time.Time) float64 {
	if !exact.IsZero() && exact.Before(seen) {
		seen = exact
	}
	return max(seen.Sub(started).Seconds(), 0)
}
