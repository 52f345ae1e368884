package latency

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/greenlight-ci/greenlight/pipelines/probe/infer"
)

func options(t *testing.T, change func(*Options)) Options {
	t.Helper()
	o := Options{CandidateURL: "http://candidate", Requests: []infer.Request{{Body: json.RawMessage(`{}`)}}, Limits: []Limit{{Quantile: 0.99, MaxMillis: 50}}, Seed: 1}
	if change != nil {
		change(&o)
	}
	return o
}

// stream feeds a judge with synthetic latencies in milliseconds and returns what it decided.
func decide(t *testing.T, o Options, candidate, live func(i int) float64) Result {
	t.Helper()
	require.NoError(t, o.complete())
	j := newJudge(o, live != nil)
	failure := func(millis float64) error {
		if math.IsInf(millis, 1) {
			return &infer.Failure{Kind: infer.TimedOut, Reason: "no complete answer within 10s"}
		}
		return nil
	}
	give := func(i int, millis float64, isLive bool) bool {
		spent := o.Timeout
		if !math.IsInf(millis, 1) {
			spent = time.Duration(millis * float64(time.Millisecond))
		}
		return j.add(sample{index: i, live: isLive, millis: millis, spent: spent, failure: failure(millis)})
	}
	for i := range o.MaxRequests {
		done := give(i, candidate(i), false)
		if live != nil && !done {
			done = give(i, live(i), true)
		}
		if done {
			break
		}
	}
	return j.result()
}

func logNormal(seed uint64, median, sigma float64) func(int) float64 {
	random := rand.New(rand.NewPCG(seed, 1))
	return func(int) float64 { return median * math.Exp(sigma*random.NormFloat64()) }
}

func constant(millis float64) func(int) float64 { return func(int) float64 { return millis } }

func TestDecisions(t *testing.T) {
	// A log-normal with sigma 0.5 has its p99 at 3.2 times its median.
	for _, c := range []struct {
		name            string
		change          func(*Options)
		candidate, live func(int) float64
		decision        string
		within          int
		reason          string
	}{
		{"clearly fast", nil, logNormal(1, 5, 0.5), nil, Pass, 700, "p99 <= 50 ms pass"},
		{"clearly slow", nil, logNormal(2, 50, 0.5), nil, Fail, 150, "p99 <= 50 ms: p99 is"},
		{"ten times slower", nil, constant(500), nil, Fail, 100, "p99 is 500 ms"},
		{"a little fast", func(o *Options) { o.MaxRequests = 20_000 }, logNormal(3, 12, 0.5), nil, Pass, 20_000, "pass"},
		{"at the limit", nil, logNormal(4, 50/3.2, 0.5), nil, Undecided, 5000, "undecided after 5000 requests, which counts as failed"},
		{"every fiftieth times out", nil, func(i int) float64 {
			if i%50 == 0 {
				return math.Inf(1)
			}
			return 1
		}, nil, Fail, 2000, "failed request"},
		{"errors under a p50 limit", func(o *Options) { o.Limits = []Limit{{Quantile: 0.5, MaxMillis: 50}} }, func(i int) float64 {
			if i%20 == 0 {
				return math.Inf(1)
			}
			return 1
		}, nil, Fail, 1000, "failed requests <= 1 %: 5."},
		{"errors allowed", func(o *Options) { o.Limits, o.MaxErrorPercent = []Limit{{Quantile: 0.5, MaxMillis: 50}}, 100 }, func(i int) float64 {
			if i%20 == 0 {
				return math.Inf(1)
			}
			return 1
		}, nil, Pass, 200, "p50 <= 50 ms pass"},
		{"as fast as live", relative(0.95, 20), logNormal(5, 10, 0.3), logNormal(6, 10, 0.3), Pass, 4000, "pass"},
		{"half as slow again as live", relative(0.95, 20), logNormal(7, 15, 0.3), logNormal(8, 10, 0.3), Fail, 3000, "live's is"},
		{"live is broken", relative(0.5, 20), constant(5), constant(math.Inf(1)), Pass, 800, "pass"},
		{"no more than the limit itself", nil, constant(50), nil, Pass, 700, "pass"},
	} {
		t.Run(c.name, func(t *testing.T) {
			result := decide(t, options(t, c.change), c.candidate, c.live)
			t.Logf("%s after %d: %s", result.Decision, result.Samples, result.Reason)
			require.Equal(t, c.decision, result.Decision, result.Reason)
			require.Equal(t, c.decision == Pass, result.Passed)
			require.LessOrEqual(t, result.Samples, c.within)
			require.Contains(t, result.Reason, c.reason)
			_, err := json.Marshal(result)
			require.NoError(t, err)
		})
	}
}

func relative(quantile, percent float64) func(*Options) {
	return func(o *Options) {
		o.LiveURL = "http://live"
		o.Limits = []Limit{{Quantile: quantile, MaxRegressionPercent: percent}}
	}
}

func TestUndecidedSaysHowManyMore(t *testing.T) {
	result := decide(t, options(t, func(o *Options) { o.MaxRequests = 600 }), func(i int) float64 {
		if i%200 == 199 {
			return 60
		}
		return 1
	}, nil)
	require.Equal(t, Undecided, result.Decision)
	require.Positive(t, result.Tests[0].MoreRequests)
	require.Contains(t, result.Reason, "more requests would have decided it")

	result = decide(t, options(t, func(o *Options) { relative(0.95, 20)(o); o.MaxRequests, o.MaxErrorPercent = 150, 100 }), logNormal(9, 10, 0.3), logNormal(10, 10, 0.3))
	require.Equal(t, Undecided, result.Decision)
	require.Positive(t, result.Tests[0].MoreRequests)
}

// The gate's own error rates, with the design effect estimated: at the limit, every decision is an error.
func TestFalseAlarmsOfTheGate(t *testing.T) {
	const runs = 150
	wrong := map[string]int{}
	for seed := range uint64(runs) {
		random := rand.New(rand.NewPCG(seed, 77))
		result := decide(t, options(t, func(o *Options) { o.MaxRequests, o.Alpha = 1500, 0.05 }), func(int) float64 {
			if random.Float64() < 0.01 {
				return 60
			}
			return 10
		}, nil)
		wrong[result.Decision]++
	}
	t.Logf("of %d runs exactly at the limit: %v at alpha 0.05", runs, wrong)
	slack := 3 * math.Sqrt(runs*0.05)
	require.LessOrEqual(t, float64(wrong[Pass]), runs*0.05+slack)
	require.LessOrEqual(t, float64(wrong[Fail]), runs*0.05+slack)
}

// One stall delays many requests in a row. It must not reject a healthy service; that stalls are rare takes longer to show,
// since ten slow answers in a row are not ten independent ones.
func TestOneStallDoesNotDecide(t *testing.T) {
	result := decide(t, options(t, func(o *Options) { o.MaxRequests = 20_000 }), func(i int) float64 {
		if i >= 20 && i < 30 {
			return 300
		}
		return 5
	}, nil)
	require.Equal(t, Pass, result.Decision, result.Reason)
	require.Less(t, result.Tests[0].EffectiveSamples, float64(result.Samples))
}

func TestAlphaIsSplitOverTheTests(t *testing.T) {
	o := options(t, func(o *Options) {
		o.LiveURL = "http://live"
		o.Limits = []Limit{{Quantile: 0.5, MaxMillis: 20, MaxRegressionPercent: 10}, {Quantile: 0.95, MaxMillis: 50}}
		o.Alpha = 0.04
	})
	require.NoError(t, o.complete())
	tests := o.tests()
	require.Len(t, tests, 4, "three limits and the failed requests")
	for _, test := range tests {
		require.InDelta(t, 0.01, test.AlphaFail, 1e-12)
		require.InDelta(t, 0.04, test.AlphaPass, 1e-12)
	}
	require.Equal(t, Errors, tests[3].Kind)
}

func TestFixedWindow(t *testing.T) {
	fixed := func(o *Options) { o.Mode, o.MaxRequests = Fixed, 400 }
	result := decide(t, options(t, fixed), constant(10), nil)
	require.Equal(t, Pass, result.Decision)
	require.Equal(t, 400, result.Samples)
	result = decide(t, options(t, fixed), func(i int) float64 { return float64(i % 100) }, nil)
	require.Equal(t, Fail, result.Decision)
	require.Contains(t, result.Reason, "p99 is 98 ms")
	result = decide(t, options(t, func(o *Options) { relative(0.5, 50)(o); fixed(o) }), constant(14), constant(10))
	require.Equal(t, Pass, result.Decision)
}

// Slow requests end last. What is judged must not depend on the order in which requests end.
func TestOrderOfCompletionDoesNotMatter(t *testing.T) {
	o := options(t, nil)
	require.NoError(t, o.complete())
	j := newJudge(o, false)
	for i := 1; i < 700; i++ {
		require.False(t, j.add(sample{index: i, millis: 1, spent: time.Millisecond}), "request 0 has not ended yet")
	}
	require.Zero(t, j.judged())
	require.True(t, j.add(sample{index: 0, millis: 1, spent: time.Millisecond}))
}

func TestBadOptions(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Options)
		reason string
	}{
		"no URL":            {func(o *Options) { o.CandidateURL = "" }, "URL is missing"},
		"no request":        {func(o *Options) { o.Requests = nil }, "no request to send"},
		"no limit":          {func(o *Options) { o.Limits = nil }, "no limit to test"},
		"empty limit":       {func(o *Options) { o.Limits = []Limit{{Quantile: 0.5}} }, "give maxMillis"},
		"percent quantile":  {func(o *Options) { o.Limits = []Limit{{Quantile: 99, MaxMillis: 1}} }, "between 0 and 1"},
		"NaN limit":         {func(o *Options) { o.Limits = []Limit{{Quantile: 0.5, MaxMillis: math.NaN()}} }, "must not be negative"},
		"relative, no live": {func(o *Options) { o.Limits = []Limit{{Quantile: 0.5, MaxRegressionPercent: 5}} }, "needs liveUrl"},
		"limit > timeout":   {func(o *Options) { o.Limits[0].MaxMillis = 20_000 }, "more than the timeout"},
		"tiny budget":       {func(o *Options) { o.MaxRequests = 200 }, "takes at least 556"},
		"mode":              {func(o *Options) { o.Mode = "bayes" }, `"sequential" or "fixed"`},
		"rate":              {func(o *Options) { o.Rate = -1 }, "rate must be above 0"},
		"arrivals":          {func(o *Options) { o.Arrivals = "bursts" }, `"poisson" or "constant"`},
		"alpha":             {func(o *Options) { o.Alpha = 1 }, "alpha must be"},
		"outputs":           {func(o *Options) { o.Outputs = "outputs" }, "must start with $"},
		"min above max":     {func(o *Options) { o.MinRequests = 6000 }, "minRequests must be"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Run(t.Context(), options(t, c.change))
			require.ErrorIs(t, err, ErrOptions)
			require.ErrorContains(t, err, c.reason)
		})
	}
}

func service(t *testing.T, version string, handler func(n int64, w http.ResponseWriter, r *http.Request) bool) string {
	t.Helper()
	var count atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if handler != nil && handler(count.Add(1), w, r) {
			return
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"outputs":[[1]],"version":%q}`, version)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

func TestRunAgainstServers(t *testing.T) {
	slow := func(_ int64, _ http.ResponseWriter, _ *http.Request) bool {
		time.Sleep(120 * time.Millisecond)
		return false
	}
	nan := func(_ int64, w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"outputs":[[NaN]]}`)
		return true
	}
	for _, c := range []struct {
		name     string
		handler  func(int64, http.ResponseWriter, *http.Request) bool
		version  string
		decision string
		reason   string
	}{
		{"fast", nil, "v2", Pass, "pass"},
		{"slow", slow, "v2", Fail, "p50 is"},
		{"NaN", nan, "v2", Fail, "$.outputs[0][0] is NaN"},
		{"wrong version", nil, "v1", Fail, "came from version v1, not from the candidate v2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := options(t, func(o *Options) {
				o.CandidateURL, o.LiveURL, o.CandidateVersion = service(t, c.version, c.handler), service(t, "v1", nil), "v2"
				o.Limits = []Limit{{Quantile: 0.5, MaxMillis: 100}}
				o.MaxErrorPercent, o.Rate, o.MaxRequests, o.MinRequests = 20, 150, 300, 40
			})
			result, err := Run(t.Context(), o)
			if c.decision == Pass {
				require.NoError(t, err)
				require.NotNil(t, result.Live)
			} else {
				require.ErrorIs(t, err, ErrRejected)
			}
			require.Equal(t, c.decision, result.Decision, result.Reason)
			require.Contains(t, result.Reason, c.reason)
			require.GreaterOrEqual(t, result.Samples, 40)
		})
	}
}

func TestRunIsBounded(t *testing.T) {
	hangs := service(t, "v2", func(_ int64, _ http.ResponseWriter, r *http.Request) bool {
		<-r.Context().Done()
		return true
	})
	o := options(t, func(o *Options) {
		o.CandidateURL, o.Timeout, o.Duration, o.Rate, o.Connections = hangs, 200*time.Millisecond, 3*time.Second, 100, 4
		o.Limits[0].MaxMillis = 100
	})
	start := time.Now()
	result, err := Run(t.Context(), o)
	require.ErrorIs(t, err, ErrRejected)
	require.Equal(t, Fail, result.Decision)
	require.Contains(t, result.Reason, "no complete answer within 200ms")
	require.Less(t, time.Since(start), 4*time.Second)

	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = Run(ctx, o)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, ErrRejected)
}

// Coordinated omission: a service that stalls once for long delays all requests due meanwhile, and all of them must count.
func TestAStallCountsForEveryRequestDueMeanwhile(t *testing.T) {
	var until atomic.Int64
	stalling := service(t, "v2", func(n int64, _ http.ResponseWriter, _ *http.Request) bool {
		if n == 20 {
			until.Store(time.Now().Add(600 * time.Millisecond).UnixNano())
		}
		time.Sleep(time.Until(time.Unix(0, until.Load())))
		return false
	})
	o := options(t, func(o *Options) {
		o.CandidateURL, o.Mode, o.MaxRequests, o.Rate, o.Connections, o.Arrivals = stalling, Fixed, 200, 100, 2, "constant"
		o.Limits = []Limit{{Quantile: 0.9, MaxMillis: 400}}
	})
	result, _ := Run(t.Context(), o)
	// Two connections send two requests during the stall; sixty were due.
	require.GreaterOrEqual(t, result.Candidate.P95, 300.0, "the requests that waited for the stalled ones count from their time")
	require.Equal(t, 200, result.Samples)
}
