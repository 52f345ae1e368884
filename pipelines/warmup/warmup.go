// Package warmup sends requests to a service until its latency is stable, so that the latency gate measures the service
// and not its first answers (lazily loaded kernels, autotuning, cold caches). Cold answers are reported, never counted.
package warmup

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/greenlight-ci/greenlight/pipelines/probe/infer"
	"github.com/greenlight-ci/greenlight/pipelines/probe/jsonpath"
)

var (
	// ErrRejected is wrapped by the error of a warm-up whose requests failed, or that stayed unstable although RequireStable was set.
	ErrRejected = errors.New("warm-up rejected the candidate")
	// ErrOptions is wrapped by errors about the options: nothing was sent.
	ErrOptions = errors.New("warm-up options")
)

// Options are what Run needs. Durations are nanoseconds in JSON.
type Options struct {
	// URL is the service. Required.
	URL string `json:"url"`
	// Requests are sent in turn. At least one is required.
	Requests []infer.Request `json:"requests"`
	// Outputs is the JSON path of the numbers that every answer must have. Default $.outputs, "-" for none.
	Outputs string `json:"outputs,omitempty"`
	// Connections is how many requests are sent at a time, so that every worker of the service gets warm. Default 4.
	Connections int `json:"connections,omitempty"`
	// Batch is the number of requests whose median is compared. Default 20.
	Batch int `json:"batch,omitempty"`
	// StableBatches is how many successive batches must agree. Default 3.
	StableBatches int `json:"stableBatches,omitempty"`
	// TolerancePercent is by how much the largest of their medians may be above the smallest. Default 20.
	TolerancePercent float64 `json:"tolerancePercent,omitempty"`
	// ToleranceMillis is a difference of medians that never matters. Default 1.
	ToleranceMillis float64 `json:"toleranceMillis,omitempty"`
	// MaxRequests and MaxDuration are the limits. Defaults 1000 and 60 s.
	MaxRequests int           `json:"maxRequests,omitempty"`
	MaxDuration time.Duration `json:"maxDuration,omitempty"`
	// Timeout is for one request. Default 30 s: the first may compile kernels.
	Timeout time.Duration `json:"timeout,omitempty"`
	// RequireStable makes a service rejected whose latency is not stable within the limits. Otherwise the warm-up passes and
	// says so: the latency gate decides.
	RequireStable bool `json:"requireStable,omitempty"`
	// Log is told about the progress, one line at a time. nil: nobody.
	Log func(line string) `json:"-"`
}

// Batch is what one batch of requests showed. Latencies are in milliseconds.
type Batch struct {
	MedianMillis float64 `json:"medianMillis"`
	MaxMillis    float64 `json:"maxMillis"`
}

// Result is what the warm-up found.
type Result struct {
	// Passed tells whether the release may go on.
	Passed bool `json:"passed"`
	// Reason is the finding in one line.
	Reason string `json:"reason"`
	// Stable tells whether the last batches agreed.
	Stable bool `json:"stable"`
	// Requests is how many answers came; Cold is how many of them came before the batches that agreed.
	Requests int `json:"requests"`
	Cold     int `json:"cold"`
	// FirstMillis is the latency of the first answer, ColdMaxMillis the largest of all cold ones, WarmMillis the median of the last batch.
	FirstMillis   float64 `json:"firstMillis"`
	ColdMaxMillis float64 `json:"coldMaxMillis"`
	WarmMillis    float64 `json:"warmMillis"`
	// Batches are all batches in order.
	Batches []Batch `json:"batches"`
	// Seconds is how long it took.
	Seconds float64 `json:"seconds"`
}

func (o *Options) complete() (jsonpath.Path, bool, error) {
	setDefault(&o.Connections, 4)
	setDefault(&o.Batch, 20)
	setDefault(&o.StableBatches, 3)
	setDefault(&o.TolerancePercent, 20)
	setDefault(&o.ToleranceMillis, 1)
	setDefault(&o.MaxRequests, 1000)
	setDefault(&o.MaxDuration, time.Minute)
	setDefault(&o.Timeout, 30*time.Second)
	if o.Log == nil {
		o.Log = func(string) {}
	}
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{ErrOptions}, args...)...)
	}
	outputs, check, err := infer.OutputsPath(o.Outputs)
	switch {
	case err != nil:
		return outputs, check, bad("outputs: %w", err)
	case len(o.Requests) == 0:
		return outputs, check, bad("there is no request to send")
	case o.Connections < 1 || o.Connections > 1024:
		return outputs, check, bad("connections must be 1 to 1024, not %d", o.Connections)
	case o.Batch < 1 || o.StableBatches < 2 || o.TolerancePercent < 0 || o.ToleranceMillis < 0:
		return outputs, check, bad("batch must be at least 1, stableBatches at least 2, and tolerances not negative")
	case o.MaxRequests < o.Batch*o.StableBatches:
		return outputs, check, bad("maxRequests (%d) is less than %d batches of %d", o.MaxRequests, o.StableBatches, o.Batch)
	case o.MaxDuration < 0 || o.Timeout < 0:
		return outputs, check, bad("maxDuration and timeout must not be negative")
	}
	return outputs, check, nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Run warms the service up. The Result is filled also with an error that wraps ErrRejected.
func Run(ctx context.Context, options Options) (Result, error) {
	outputs, checkOutputs, err := options.complete()
	if err != nil {
		return Result{}, err
	}
	client, err := infer.NewClient(options.URL, infer.Options{Timeout: options.Timeout, Connections: options.Connections})
	if err != nil {
		return Result{}, fmt.Errorf("%w: %w", ErrOptions, err)
	}
	defer client.Close()
	start := time.Now()
	budget, cancel := context.WithTimeout(ctx, options.MaxDuration)
	defer cancel()
	var latencies []float64
	var result Result
	reject := func(reason string) (Result, error) {
		result.fill(options, latencies, start)
		result.Reason = reason
		return result, fmt.Errorf("%w: %s", ErrRejected, reason)
	}
	for len(latencies)+options.Batch <= options.MaxRequests && !result.Stable {
		batch, err := sendBatch(budget, client, options, outputs, checkOutputs, len(latencies))
		latencies = append(latencies, batch...)
		switch {
		case ctx.Err() != nil:
			return result, fmt.Errorf("warming up: stopped: %w", context.Cause(ctx))
		case infer.KindOf(err) == infer.Cancelled: // the budget of time is spent
		case err != nil:
			return reject(fmt.Sprintf("request %d failed: %v", len(latencies)+1, err))
		}
		if len(batch) < options.Batch {
			break
		}
		result.Batches = append(result.Batches, summarise(batch))
		result.Stable = stable(result.Batches, options)
		options.Log(fmt.Sprintf("%d requests, median of the last %d: %.4g ms", len(latencies), options.Batch, median(batch)))
	}
	result.fill(options, latencies, start)
	switch {
	case result.Stable:
		result.Reason = fmt.Sprintf("stable at %.4g ms after %d requests; the first took %.4g ms", result.WarmMillis, result.Requests, result.FirstMillis)
	case len(latencies) == 0:
		return reject(fmt.Sprintf("no answer within %s", options.MaxDuration))
	case options.RequireStable:
		return reject(fmt.Sprintf("latency not stable after %d requests in %.3g s", result.Requests, result.Seconds))
	default:
		result.Reason = fmt.Sprintf("latency not stable after %d requests in %.3g s; the latency gate decides", result.Requests, result.Seconds)
	}
	result.Passed = true
	return result, nil
}

// sendBatch sends one batch over all connections and returns the latencies in the order in which the answers came. It stops at the
// first failure.
func sendBatch(ctx context.Context, client *infer.Client, options Options, outputs jsonpath.Path, checkOutputs bool, sent int) ([]float64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var mu sync.Mutex
	var latencies []float64
	var first error
	var next atomic.Int64
	var workers sync.WaitGroup
	for range options.Connections {
		workers.Go(func() {
			for ctx.Err() == nil {
				at := int(next.Add(1)) - 1
				if at >= options.Batch {
					return
				}
				answer, err := client.Do(ctx, options.Requests[(sent+at)%len(options.Requests)], 200)
				if err == nil && checkOutputs {
					_, err = infer.Outputs(answer.Document, outputs)
				}
				mu.Lock()
				if err == nil {
					latencies = append(latencies, answer.Elapsed.Seconds()*1000)
				} else if first == nil {
					first = err
					cancel()
				}
				mu.Unlock()
			}
		})
	}
	workers.Wait()
	return latencies, first
}

func (r *Result) fill(options Options, latencies []float64, start time.Time) {
	r.Seconds = round(time.Since(start).Seconds())
	r.Requests = len(latencies)
	r.Cold = r.Requests
	if r.Stable {
		r.Cold -= options.StableBatches * options.Batch
	}
	if r.Requests > 0 {
		r.FirstMillis = round(latencies[0])
		r.ColdMaxMillis = round(slices.Max(latencies[:max(r.Cold, 1)]))
	}
	if len(r.Batches) > 0 {
		r.WarmMillis = r.Batches[len(r.Batches)-1].MedianMillis
	}
}

// stable tells whether the medians of the last batches agree.
func stable(batches []Batch, options Options) bool {
	if len(batches) < options.StableBatches {
		return false
	}
	least, most := math.Inf(1), 0.0
	for _, batch := range batches[len(batches)-options.StableBatches:] {
		least, most = min(least, batch.MedianMillis), max(most, batch.MedianMillis)
	}
	return most-least <= max(options.ToleranceMillis, least*options.TolerancePercent/100)
}

func summarise(latencies []float64) Batch {
	return Batch{MedianMillis: round(median(latencies)), MaxMillis: round(slices.Max(latencies))}
}

func median(latencies []float64) float64 {
	ordered := slices.Sorted(slices.Values(latencies))
	middle := len(ordered) / 2
	if len(ordered)%2 == 0 {
		return (ordered[middle-1] + ordered[middle]) / 2
	}
	return ordered[middle]
}

func round(value float64) float64 { return math.Round(value*1000) / 1000 }
