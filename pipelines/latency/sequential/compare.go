package sequential

import (
	"math"
	"sort"
)

// Sample is one side of a comparison.
type Sample struct {
	// Sorted are the samples in ascending order; a failed request is +Inf.
	Sorted []float64
	// Dispersion is their design effect, at least 1.
	Dispersion float64
}

// Comparison asks whether the candidate's quantile is at most Factor times live's.
type Comparison struct {
	// Quantile is between 0 and 1, Factor above 0.
	Quantile, Factor float64
	// AlphaPass and AlphaFail are the chances that NotWorse and Worse may ever be true wrongly.
	AlphaPass, AlphaFail float64

	// Where the last look failed: the next one most likely fails there too, and then need not look further.
	failedNotWorse, failedWorse float64
}

// NotWorse tells whether the evidence that the candidate keeps the limit has reached 1/AlphaPass.
func (c *Comparison) NotWorse(candidate, live Sample) bool {
	return c.notWorse(candidate, live, max(candidate.Dispersion, live.Dispersion, 1))
}

// Worse tells whether the evidence that the candidate breaks the limit has reached 1/AlphaFail.
func (c *Comparison) Worse(candidate, live Sample) bool {
	return c.worse(candidate, live, max(candidate.Dispersion, live.Dispersion, 1))
}

// More estimates how many times as many samples, 1.25 to 1000, it would take to decide if they are like these. 0: more.
func (c *Comparison) More(candidate, live Sample) float64 {
	// The same samples over again: the shares stay, the number grows, which is what a smaller design effect says.
	dispersion := max(candidate.Dispersion, live.Dispersion, 1)
	for times := 1.25; times <= 1000; times *= 1.25 {
		if c.notWorse(candidate, live, dispersion/times) || c.worse(candidate, live, dispersion/times) {
			return times
		}
	}
	return 0
}

func (c *Comparison) notWorse(candidate, live Sample, dispersion float64) bool {
	return c.everywhere(candidate, live, product{
		candidate: newCounted(Below, len(candidate.Sorted), dispersion, 1-c.Quantile), ofCandidate: Exceeding,
		live: newCounted(Above, len(live.Sorted), dispersion, 1-c.Quantile), ofLive: Exceeding, limit: -math.Log(c.AlphaPass),
	}, &c.failedNotWorse)
}

func (c *Comparison) worse(candidate, live Sample, dispersion float64) bool {
	return c.everywhere(candidate, live, product{
		candidate: newCounted(Above, len(candidate.Sorted), dispersion, 1-c.Quantile), ofCandidate: Exceeding,
		live: newCounted(Below, len(live.Sorted), dispersion, 1-c.Quantile), ofLive: AtLeast, limit: -math.Log(c.AlphaFail),
	}, &c.failedWorse)
}

// product is the evidence of both sides together. There is one design effect for both: two different ones would discount
// evidence against more than evidence for.
type product struct {
	candidate, live     counted
	ofCandidate, ofLive func(sorted []float64, threshold float64) int
	limit               float64
}

// everywhere tells whether the product reaches its limit at every threshold. The counts are step functions of the threshold, so it is
// enough to look at the thresholds where one of them steps, and just below.
func (c *Comparison) everywhere(candidate, live Sample, p product, failed *float64) bool {
	holds := func(threshold float64) bool {
		reached := p.candidate.at(p.ofCandidate(candidate.Sorted, threshold))+p.live.at(p.ofLive(live.Sorted, threshold/c.Factor)) >= p.limit
		if !reached {
			*failed = threshold
		}
		return reached
	}
	for _, first := range []float64{*failed, Quantile(candidate.Sorted, c.Quantile), c.Factor * Quantile(live.Sorted, c.Quantile)} {
		if !math.IsInf(first, 1) && !holds(first) {
			return false
		}
	}
	thresholds := make([]float64, 0, 2*(len(candidate.Sorted)+len(live.Sorted))+1)
	add := func(value float64) {
		if !math.IsInf(value, 1) {
			thresholds = append(thresholds, value, math.Nextafter(value, math.Inf(-1)))
		}
	}
	for _, value := range candidate.Sorted {
		add(value)
	}
	for _, value := range live.Sorted {
		add(value * c.Factor)
	}
	thresholds = append(thresholds, math.MaxFloat64)
	sort.Float64s(thresholds)
	for _, threshold := range thresholds {
		if !holds(threshold) {
			return false
		}
	}
	return true
}

// counted is the evidence of each number of exceeding samples, each computed once.
type counted struct {
	known []float64
	of    func(count int) float64
}

func newCounted(evidence func(samples, exceeding, p0 float64) float64, samples int, dispersion, p0 float64) counted {
	return counted{known: make([]float64, samples+1), of: func(count int) float64 {
		return evidence(float64(samples)/dispersion, float64(count)/dispersion, p0)
	}}
}

func (c counted) at(count int) float64 {
	// An evidence of exactly 0 is computed again each time, which is only a loss of time.
	if c.known[count] == 0 {
		c.known[count] = c.of(count)
	}
	return c.known[count]
}
