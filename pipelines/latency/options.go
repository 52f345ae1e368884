package latency

import (
	"errors"
	"fmt"
	"time"

	"github.com/greenlight-ci/greenlight/pipelines/latency/sequential"
	"github.com/greenlight-ci/greenlight/pipelines/probe/infer"
	"github.com/greenlight-ci/greenlight/pipelines/probe/openloop"
)

// The modes.
const (
	// Sequential stops as soon as the answer is certain. The default.
	Sequential = "sequential"
	// Fixed sends MaxRequests requests and compares the empirical quantiles with the limits.
	Fixed = "fixed"
)

// ErrOptions is wrapped by errors about the options: nothing was sent.
var ErrOptions = errors.New("latency options")

// Limit bounds one quantile of the candidate's latency, absolutely, relative to live, or both.
type Limit struct {
	// Quantile is between 0 and 1: 0.99 is the p99.
	Quantile float64 `json:"quantile"`
	// MaxMillis is the largest allowed value in milliseconds. 0: no absolute limit.
	MaxMillis float64 `json:"maxMillis,omitempty"`
	// MaxRegressionPercent is by how many percent the quantile may be above live's. 0: no relative limit. Needs LiveURL.
	MaxRegressionPercent float64 `json:"maxRegressionPercent,omitempty"`
}

// Options are what Run needs. Durations are nanoseconds in JSON.
type Options struct {
	// CandidateURL is the preview Service. Required.
	CandidateURL string `json:"candidateUrl"`
	// LiveURL is the live Service, "" where there is none. It gets the same load as the candidate, on top of its users'.
	LiveURL string `json:"liveUrl,omitempty"`
	// CandidateVersion is the version that the candidate's answers must name, where they name one. "": any.
	CandidateVersion string `json:"candidateVersion,omitempty"`
	// Requests are sent in turn. At least one is required.
	Requests []infer.Request `json:"requests"`
	// Outputs is the JSON path of the numbers that every answer must have. Default $.outputs, "-" for none.
	Outputs string `json:"outputs,omitempty"`
	// Mode is Sequential (default) or Fixed.
	Mode string `json:"mode,omitempty"`
	// Rate is the mean number of requests per second to each side. Default 50.
	Rate float64 `json:"rate,omitempty"`
	// Arrivals is "poisson" (default) or "constant".
	Arrivals string `json:"arrivals,omitempty"`
	// Connections is the number of kept connections to each side, and so of requests in flight. Default 16.
	Connections int `json:"connections,omitempty"`
	// MaxRequests is the budget of requests to each side. Default 5000.
	MaxRequests int `json:"maxRequests,omitempty"`
	// MinRequests is the number of requests to each side before which nothing is decided. Default 100.
	MinRequests int `json:"minRequests,omitempty"`
	// Duration is the budget of time. Default: what MaxRequests take at Rate, half as much again, and Timeout.
	Duration time.Duration `json:"duration,omitempty"`
	// Timeout is for one request, counted from its scheduled time. Default 10 s.
	Timeout time.Duration `json:"timeout,omitempty"`
	// Limits must name at least one limit.
	Limits []Limit `json:"limits"`
	// MaxErrorPercent is the largest allowed share of failed requests. Default 1, 100 for any. Where a limit on a
	// quantile is stricter already, since failed requests count as worse than any limit, no test of its own is made.
	MaxErrorPercent float64 `json:"maxErrorPercent,omitempty"`
	// Alpha is the chance that the gate is wrong: that it rejects a candidate that keeps all limits, or passes one that breaks
	// one. Default 0.01.
	Alpha float64 `json:"alpha,omitempty"`
	// Seed makes the arrival times repeatable. 0: from the clock.
	Seed uint64 `json:"seed,omitempty"`
	// Log is told about the progress, one line at a time. nil: nobody.
	Log func(line string) `json:"-"`
}

// Check says what is wrong with the options, as Run would before it sends anything: the error wraps ErrOptions.
func (o Options) Check() error { return o.complete() }

func (o *Options) complete() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{ErrOptions}, args...)...)
	}
	setDefault(&o.Mode, Sequential)
	setDefault(&o.Rate, 50)
	setDefault(&o.Arrivals, openloop.Poisson)
	setDefault(&o.Connections, 16)
	setDefault(&o.MaxRequests, 5000)
	setDefault(&o.MinRequests, min(100, o.MaxRequests))
	setDefault(&o.Timeout, infer.DefaultTimeout)
	setDefault(&o.MaxErrorPercent, 1)
	setDefault(&o.Alpha, 0.01)
	setDefault(&o.Seed, uint64(time.Now().UnixNano()))
	if o.Log == nil {
		o.Log = func(string) {}
	}
	if _, err := infer.ParseURL(o.CandidateURL); err != nil {
		return bad("candidate: %w", err)
	}
	if o.LiveURL != "" {
		if _, err := infer.ParseURL(o.LiveURL); err != nil {
			return bad("live: %w", err)
		}
	}
	if _, _, err := infer.OutputsPath(o.Outputs); err != nil {
		return bad("outputs: %w", err)
	}
	if err := (openloop.Schedule{Rate: o.Rate, Arrivals: o.Arrivals}).Check(); err != nil {
		return bad("%w", err)
	}
	switch {
	case o.Mode != Sequential && o.Mode != Fixed:
		return bad("mode must be %q or %q, not %q", Sequential, Fixed, o.Mode)
	case len(o.Requests) == 0:
		return bad("there is no request to send")
	case o.Connections < 1 || o.Connections > 1024:
		return bad("connections must be 1 to 1024, not %d", o.Connections)
	case o.MaxRequests < 1 || o.MaxRequests > 1_000_000:
		return bad("maxRequests must be 1 to 1000000, not %d", o.MaxRequests)
	case o.MinRequests < 1 || o.MinRequests > o.MaxRequests:
		return bad("minRequests must be 1 to maxRequests (%d), not %d", o.MaxRequests, o.MinRequests)
	case o.Timeout < 0 || o.Duration < 0:
		return bad("timeout and duration must not be negative")
	case o.MaxErrorPercent < 0 || o.MaxErrorPercent > 100:
		return bad("maxErrorPercent must be 0 to 100, not %v", o.MaxErrorPercent)
	case !(o.Alpha > 0) || o.Alpha > 0.5:
		return bad("alpha must be above 0 and at most 0.5, not %v", o.Alpha)
	case len(o.Limits) == 0:
		return bad("there is no limit to test")
	}
	setDefault(&o.Duration, time.Duration(float64(o.MaxRequests)/o.Rate*1.5*float64(time.Second))+o.Timeout)
	for i, limit := range o.Limits {
		switch {
		case !(limit.Quantile > 0 && limit.Quantile < 1):
			return bad("limit %d: the quantile must be between 0 and 1, such as 0.99, not %v", i+1, limit.Quantile)
		case !(limit.MaxMillis >= 0) || !(limit.MaxRegressionPercent >= 0):
			return bad("limit %d: maxMillis and maxRegressionPercent must not be negative", i+1)
		case limit.MaxMillis == 0 && limit.MaxRegressionPercent == 0:
			return bad("limit %d: give maxMillis, maxRegressionPercent or both", i+1)
		case limit.MaxMillis > float64(o.Timeout/time.Millisecond):
			return bad("limit %d: maxMillis (%v) is more than the timeout (%s)", i+1, limit.MaxMillis, o.Timeout)
		case limit.MaxRegressionPercent > 0 && o.LiveURL == "":
			return bad("limit %d: maxRegressionPercent needs liveUrl", i+1)
		}
	}
	if o.Mode == Sequential {
		// Relative tests need about as many; their exact least number depends on live.
		for _, test := range o.tests() {
			if least := sequential.Least(1-test.Quantile, test.AlphaPass); test.Kind != Relative && least > o.MaxRequests {
				return bad("%s cannot be shown with maxRequests %d: it takes at least %d at alpha %v even if all is well (mode %q has no such bound)",
					test.Name, o.MaxRequests, least, o.Alpha, Fixed)
			}
		}
	}
	return nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}
