package latency

import (
	"fmt"
	"math"

	"github.com/greenlight-ci/greenlight/pipelines/latency/sequential"
)

// The kinds of test.
const (
	Absolute = "absolute"
	Relative = "relative"
	Errors   = "errors"
)

// The decisions, of a test and of the gate.
const (
	Pass      = "pass"
	Fail      = "fail"
	Undecided = "undecided"
)

// Test is one question that the gate asks, and what it found.
type Test struct {
	// Name says the limit in words: "p99 <= 50 ms".
	Name string `json:"name"`
	// Kind is Absolute, Relative or Errors.
	Kind string `json:"kind"`
	// Quantile is between 0 and 1; for Errors it is the share of requests that must succeed.
	Quantile float64 `json:"quantile"`
	// MaxMillis or MaxRegressionPercent is the limit.
	MaxMillis            float64 `json:"maxMillis,omitempty"`
	MaxRegressionPercent float64 `json:"maxRegressionPercent,omitempty"`
	// AlphaPass and AlphaFail are the chances allowed to a wrong pass and a wrong fail of this test. 0 in mode Fixed, which bounds neither.
	AlphaPass float64 `json:"alphaPass"`
	AlphaFail float64 `json:"alphaFail"`
	// Decision is Pass, Fail or Undecided.
	Decision string `json:"decision"`
	// Samples is the number of requests to each side on which Decision rests.
	Samples int `json:"samples"`
	// EffectiveSamples is Samples over the design effect of dependent latencies.
	EffectiveSamples float64 `json:"effectiveSamples"`
	// Candidate and Live are the empirical quantile with its confidence sequence, in milliseconds. Null where not tested.
	Candidate *Estimate `json:"candidate"`
	Live      *Estimate `json:"live"`
	// Exceeding is the share of the candidate's requests above the limit (Absolute), or failed (Errors).
	Exceeding float64 `json:"exceeding"`
	// MoreRequests is how many more requests to each side an undecided test would have needed at the present shares; 0: unknown
	// or more than a thousand times those sent.
	MoreRequests int `json:"moreRequests,omitempty"`
	// Detail is the finding in one line.
	Detail string `json:"detail"`

	comparison *sequential.Comparison // of a Relative test
}

// Estimate is an empirical quantile and the range that the samples leave for the true one, in milliseconds.
type Estimate struct {
	Millis float64 `json:"millis"`
	// Low and High are null where the samples give no such bound.
	Low  *float64 `json:"low"`
	High *float64 `json:"high"`
}

// side is the samples of one service in milliseconds, failed ones +Inf.
type side struct {
	inOrder []float64
	sorted  []float64
}

func (o *Options) tests() []Test {
	var tests []Test
	strictest := 1.0
	for _, limit := range o.Limits {
		name := quantileName(limit.Quantile)
		if limit.MaxMillis > 0 {
			tests = append(tests, Test{Name: fmt.Sprintf("%s <= %g ms", name, limit.MaxMillis), Kind: Absolute, Quantile: limit.Quantile, MaxMillis: limit.MaxMillis})
			strictest = min(strictest, 1-limit.Quantile)
		}
		if limit.MaxRegressionPercent > 0 {
			tests = append(tests, Test{
				Name: fmt.Sprintf("%s <= live's + %g %%", name, limit.MaxRegressionPercent), Kind: Relative,
				Quantile: limit.Quantile, MaxRegressionPercent: limit.MaxRegressionPercent,
			})
		}
	}
	if share := o.MaxErrorPercent / 100; share < 1 && strictest > share+1e-9 {
		tests = append(tests, Test{Name: fmt.Sprintf("failed requests <= %g %%", o.MaxErrorPercent), Kind: Errors, Quantile: 1 - share})
	}
	for i := range tests {
		tests[i].Decision = Undecided
		if o.Mode == Sequential {
			tests[i].AlphaPass, tests[i].AlphaFail = o.Alpha, o.Alpha/float64(len(tests))
		}
		tests[i].comparison = &sequential.Comparison{
			Quantile: tests[i].Quantile, Factor: 1 + tests[i].MaxRegressionPercent/100,
			AlphaPass: tests[i].AlphaPass, AlphaFail: tests[i].AlphaFail,
		}
	}
	return tests
}

func quantileName(quantile float64) string { return fmt.Sprintf("p%.4g", quantile*100) }

// threshold is the latency in milliseconds above which a sample counts against a one-sample test.
func (t *Test) threshold() float64 {
	if t.Kind == Errors {
		return math.MaxFloat64 // only failed requests are above
	}
	return t.MaxMillis
}

// look decides a test that is undecided, if the samples allow it.
func (t *Test) look(candidate, live side) {
	if t.Decision != Undecided {
		return
	}
	t.Samples = len(candidate.sorted)
	if t.Kind == Relative {
		c, l := sampleAt(candidate, t.Quantile), sampleAt(live, t.Quantile)
		t.EffectiveSamples = float64(t.Samples) / max(c.Dispersion, l.Dispersion)
		switch {
		case len(live.sorted) == 0:
		case t.comparison.NotWorse(c, l):
			t.Decision = Pass
		case t.comparison.Worse(c, l):
			t.Decision = Fail
		}
		return
	}
	samples, exceeding, p0 := t.counts(candidate)
	switch {
	case sequential.Below(samples, exceeding, p0) >= -math.Log(t.AlphaPass):
		t.Decision = Pass
	case sequential.Above(samples, exceeding, p0) >= -math.Log(t.AlphaFail):
		t.Decision = Fail
	}
}

func (t *Test) counts(candidate side) (samples, exceeding, p0 float64) {
	dispersion := sequential.Dispersion(candidate.inOrder, t.threshold())
	if t.Kind == Absolute {
		// Where few or none exceed the limit, their runs cannot be seen; those of the slowest samples can.
		dispersion = max(dispersion, sampleAt(candidate, t.Quantile).Dispersion)
	}
	count := sequential.Exceeding(candidate.sorted, t.threshold())
	t.EffectiveSamples = float64(len(candidate.sorted)) / dispersion
	return t.EffectiveSamples, float64(count) / dispersion, 1 - t.Quantile
}

func sampleAt(of side, quantile float64) sequential.Sample {
	at := sequential.Quantile(of.sorted, quantile)
	return sequential.Sample{Sorted: of.sorted, Dispersion: sequential.Dispersion(of.inOrder, math.Nextafter(at, 0))}
}

// compareWindow is the decision of mode Fixed.
func (t *Test) compareWindow(candidate, live side) {
	t.Samples = len(candidate.sorted)
	t.EffectiveSamples = float64(t.Samples)
	observed := sequential.Quantile(candidate.sorted, t.Quantile)
	limit := t.threshold()
	if t.Kind == Relative {
		limit = sequential.Quantile(live.sorted, t.Quantile) * (1 + t.MaxRegressionPercent/100)
	}
	if t.Decision = Fail; observed <= limit {
		t.Decision = Pass
	}
}

// describe fills what a reader needs to follow the decision.
func (t *Test) describe(candidate, live side, alpha float64) {
	t.Exceeding = share(sequential.Exceeding(candidate.sorted, t.threshold()), len(candidate.sorted))
	if t.Kind == Errors {
		t.Detail = fmt.Sprintf("%.2f %% of %d requests failed", 100*t.Exceeding, len(candidate.sorted))
	} else {
		t.Candidate = estimate(candidate, t.Quantile, alpha)
		t.Detail = fmt.Sprintf("%s is %s", quantileName(t.Quantile), t.Candidate)
	}
	if t.Kind == Relative {
		t.Exceeding = 0
		t.Live = estimate(live, t.Quantile, alpha)
		t.Detail += fmt.Sprintf(", live's is %s", t.Live)
	}
	t.Detail += fmt.Sprintf(" (%d requests)", t.Samples)
	if t.Decision == Undecided {
		t.MoreRequests = t.more(candidate, live)
		if t.MoreRequests > 0 {
			t.Detail += fmt.Sprintf("; about %d more requests would have decided it", t.MoreRequests)
		} else {
			t.Detail += "; it is too close to the limit to say how many more requests would have decided it"
		}
	}
}

func (t *Test) more(candidate, live side) int {
	n := len(candidate.sorted)
	if n == 0 {
		return 0
	}
	if t.Kind != Relative {
		samples, exceeding, p0 := t.counts(candidate)
		total, _, ok := sequential.MoreSamples(samples, exceeding, p0, t.AlphaPass, t.AlphaFail)
		if !ok {
			return 0
		}
		return max(1, int(float64(total)*float64(n)/samples)-n)
	}
	times := t.comparison.More(sampleAt(candidate, t.Quantile), sampleAt(live, t.Quantile))
	return max(0, int(float64(n)*(times-1)))
}

func estimate(of side, quantile, alpha float64) *Estimate {
	if len(of.sorted) == 0 {
		return nil
	}
	at := sequential.Quantile(of.sorted, quantile)
	bounds := sequential.Bounds(of.sorted, quantile, alpha, sampleAt(of, quantile).Dispersion)
	result := &Estimate{Millis: finite(at)}
	if bounds.Low > 0 && !math.IsInf(bounds.Low, 1) {
		low := roundMillis(bounds.Low)
		result.Low = &low
	}
	if !math.IsInf(bounds.High, 1) {
		high := roundMillis(bounds.High)
		result.High = &high
	}
	return result
}

// String is "12.3 ms (10.1 to 15.7)".
func (e *Estimate) String() string {
	if e == nil {
		return "unknown"
	}
	low, high := "0", "no bound"
	if e.Low != nil {
		low = fmt.Sprintf("%.4g", *e.Low)
	}
	if e.High != nil {
		high = fmt.Sprintf("%.4g", *e.High)
	}
	if e.Millis >= failedMillis {
		return fmt.Sprintf("a failed request (%s to %s)", low, high)
	}
	return fmt.Sprintf("%.4g ms (%s to %s)", e.Millis, low, high)
}

// failedMillis stands for the latency of a failed request in JSON, which has no infinity: about 31 years.
const failedMillis = 1e12

func finite(millis float64) float64 {
	if math.IsInf(millis, 1) {
		return failedMillis
	}
	return roundMillis(millis)
}

func roundMillis(millis float64) float64 { return math.Round(millis*1000) / 1000 }

func share(part, whole int) float64 {
	if whole == 0 {
		return 0
	}
	return float64(part) / float64(whole)
}
