// Package latency is the gate that says whether the candidate is fast enough: under open-loop load, against limits in
// milliseconds and against live, decided as soon as the answer is certain (see package sequential for the statistics).
package latency

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/greenlight-ci/greenlight/pipelines/probe/infer"
	"github.com/greenlight-ci/greenlight/pipelines/probe/jsonpath"
	"github.com/greenlight-ci/greenlight/pipelines/probe/openloop"
)

// ErrRejected is wrapped by the error of a gate that said no. The Result says why.
var ErrRejected = errors.New("latency gate rejected the candidate")

// Percentiles are latencies in milliseconds from the scheduled time to the last byte of the answer. Failed requests are
// in them with the timeout's length.
type Percentiles struct {
	P50  float64 `json:"p50"`
	P95  float64 `json:"p95"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p999"`
	Max  float64 `json:"max"`
	Mean float64 `json:"mean"`
}

// Result is what the gate found.
type Result struct {
	// Passed tells whether the candidate keeps all limits. Undecided is not passed.
	Passed bool `json:"passed"`
	// Reason is the finding in one line.
	Reason string `json:"reason"`
	// Decision is Pass, Fail or Undecided.
	Decision string `json:"decision"`
	// Candidate and Live are null where there was no such side, or no request.
	Candidate *Percentiles `json:"candidate"`
	Live      *Percentiles `json:"live"`
	// Samples is the number of requests to each side that were judged; Errors and LiveErrors are how many of them failed.
	Samples    int `json:"samples"`
	Errors     int `json:"errors"`
	LiveErrors int `json:"liveErrors"`
	// Reasons counts the failed requests of both sides by kind: "candidate timeout".
	Reasons map[string]int `json:"reasons,omitempty"`
	// FirstFailure is the candidate's first failed request in one line.
	FirstFailure string `json:"firstFailure,omitempty"`
	// Redialled is how many requests found their kept connection gone before a byte was written and used a new one.
	Redialled int `json:"redialled"`
	// Mode, Rate, Arrivals, Connections and Alpha are those that were used.
	Mode        string  `json:"mode"`
	Rate        float64 `json:"rate"`
	Arrivals    string  `json:"arrivals"`
	Connections int     `json:"connections"`
	Alpha       float64 `json:"alpha"`
	// Seconds is how long the load ran.
	Seconds float64 `json:"seconds"`
	// ScheduleLateMillis is the largest time by which the probe itself was late to send. It counts as latency, of both sides.
	ScheduleLateMillis float64 `json:"scheduleLateMillis"`
	// Tests are the questions asked, with the share of alpha of each.
	Tests []Test `json:"tests"`
}

// Run measures and decides. A candidate that is rejected, or undecided within the budget, gets an error that wraps ErrRejected; errors
// about the options wrap ErrOptions. The Result is filled in every case where something was sent.
func Run(ctx context.Context, options Options) (Result, error) {
	if err := options.complete(); err != nil {
		return Result{}, err
	}
	measuring, err := newMeasurement(options)
	if err != nil {
		return Result{}, fmt.Errorf("%w: %w", ErrOptions, err)
	}
	defer measuring.close()
	gate := newJudge(options, measuring.live != nil)

	loadCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Requests in flight at the end are awaited for a moment: live's users' graphs should not show them as aborted.
	stop := sync.OnceFunc(func() {
		close(measuring.enough)
		time.AfterFunc(lastAnswers, cancel)
	})
	defer time.AfterFunc(options.Duration, stop).Stop()
	start := time.Now()
	loadDone := make(chan time.Duration, 1)
	go func() {
		late := measuring.load(loadCtx)
		close(measuring.samples)
		loadDone <- late
	}()
	for s := range measuring.samples {
		if gate.add(s) {
			stop()
		}
	}
	late := <-loadDone
	if err := ctx.Err(); err != nil && !gate.decided() {
		return Result{}, fmt.Errorf("measuring latency: stopped before a decision: %w", context.Cause(ctx))
	}
	result := gate.result()
	if !result.Passed && late > noticeable {
		result.Reason += fmt.Sprintf("; the probe itself was up to %s late to send: its node is short of CPU", late.Round(time.Millisecond))
	}
	result.Seconds = math.Round(time.Since(start).Seconds()*1000) / 1000
	result.ScheduleLateMillis = roundMillis(late.Seconds() * 1000)
	if !result.Passed {
		return result, fmt.Errorf("%w: %s", ErrRejected, result.Reason)
	}
	return result, nil
}

const (
	// lastAnswers is how long requests in flight are awaited after the decision.
	lastAnswers = 2 * time.Second
	// noticeable is how late the probe may be to send without a word.
	noticeable = 50 * time.Millisecond
)

// sample is one finished request.
type sample struct {
	live      bool
	index     int
	millis    float64 // +Inf: failed
	spent     time.Duration
	redialled bool
	failure   error
}

// measurement sends the load.
type measurement struct {
	options         Options
	candidate, live *infer.Client
	outputs         jsonpath.Path
	checkOutputs    bool
	samples         chan sample
	enough          chan struct{} // closed when no more requests are to be sent
}

func newMeasurement(options Options) (*measurement, error) {
	m := &measurement{options: options, samples: make(chan sample, 4*options.Connections), enough: make(chan struct{})}
	var err error
	if m.outputs, m.checkOutputs, err = infer.OutputsPath(options.Outputs); err != nil {
		return nil, err
	}
	how := infer.Options{Timeout: options.Timeout, Connections: options.Connections}
	if m.candidate, err = infer.NewClient(options.CandidateURL, how); err != nil {
		return nil, err
	}
	if options.LiveURL != "" {
		m.live, err = infer.NewClient(options.LiveURL, how)
	}
	return m, err
}

func (m *measurement) close() {
	m.candidate.Close()
	if m.live != nil {
		m.live.Close()
	}
}

func (m *measurement) load(ctx context.Context) time.Duration {
	lanes := []openloop.Lane{m.lane(m.candidate, false)}
	if m.live != nil {
		lanes = append(lanes, m.lane(m.live, true))
	}
	schedule := openloop.Schedule{Rate: m.options.Rate * float64(len(lanes)), Arrivals: m.options.Arrivals, Seed: m.options.Seed}
	_, late := openloop.Run(ctx, schedule, lanes, m.options.MaxRequests*len(lanes), m.enough)
	return late
}

func (m *measurement) lane(client *infer.Client, live bool) openloop.Lane {
	return openloop.Lane{
		Workers: m.options.Connections,
		MaxWait: m.options.Timeout,
		Call: func(ctx context.Context, arrival openloop.Arrival) {
			select {
			case <-m.enough: // was waiting for a connection when the decision came
				return
			default:
			}
			answer, err := client.Do(ctx, m.options.Requests[arrival.Index%len(m.options.Requests)], 200)
			spent := time.Since(arrival.Scheduled)
			if err == nil {
				err = m.judge(answer, live)
			}
			if err == nil && spent > m.options.Timeout {
				err = &infer.Failure{Kind: infer.TimedOut, Reason: fmt.Sprintf("answered %s after its scheduled time", spent.Round(time.Millisecond))}
			}
			if infer.KindOf(err) == infer.Cancelled {
				return
			}
			s := sample{live: live, index: arrival.Index, millis: spent.Seconds() * 1000, spent: spent, redialled: answer.Redialled, failure: err}
			if err != nil {
				s.millis, s.spent = math.Inf(1), max(spent, m.options.Timeout)
			}
			m.samples <- s
		},
		Dropped: func(arrival openloop.Arrival) {
			m.samples <- sample{live: live, index: arrival.Index, millis: math.Inf(1), spent: m.options.Timeout, failure: &infer.Failure{
				Kind:   infer.NotSent,
				Reason: fmt.Sprintf("all %d connections were busy for %s", m.options.Connections, m.options.Timeout),
			}}
		},
	}
}

func (m *measurement) judge(answer infer.Answer, live bool) error {
	if m.checkOutputs {
		if _, err := infer.Outputs(answer.Document, m.outputs); err != nil {
			return err
		}
	}
	if want := m.options.CandidateVersion; !live && want != "" && answer.Version != "" && answer.Version != want {
		return &infer.Failure{Kind: infer.WrongVersion, Reason: fmt.Sprintf("the answer came from version %s, not from the candidate %s", answer.Version, want)}
	}
	return nil
}

// percentiles are nil where nothing was recorded.
func percentiles(histogram *hdrhistogram.Histogram) *Percentiles {
	if histogram.TotalCount() == 0 {
		return nil
	}
	at := func(percent float64) float64 { return float64(histogram.ValueAtQuantile(percent)) / 1000 }
	return &Percentiles{P50: at(50), P95: at(95), P99: at(99), P999: at(99.9), Max: float64(histogram.Max()) / 1000, Mean: roundMillis(histogram.Mean() / 1000)}
}

func newHistogram(timeout time.Duration) *hdrhistogram.Histogram {
	return hdrhistogram.New(1, max(2*timeout.Microseconds(), 1_000_000), 3)
}

func sorted(samples []float64) []float64 {
	ordered := slices.Clone(samples)
	slices.Sort(ordered)
	return ordered
}
