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

// NotWorse tells whether the evidence that the candidate's quantile is at most factor times live's has reached 1/alpha.
func NotWorse(candidate, live Sample, quantile, factor, alpha float64) bool {
	return NotWorseAt(candidate, live, quantile, factor, alpha, max(candidate.Dispersion, live.Dispersion, 1))
}

// NotWorseAt is NotWorse with a design effect of its own. One below 1 tells what more samples like these would show.
func NotWorseAt(candidate, live Sample, quantile, factor, alpha, dispersion float64) bool {
	return everywhere(candidate, live, quantile, factor, alpha, dispersion, Below, Above, Exceeding)
}

// Worse tells whether the evidence that the candidate's quantile is above factor times live's has reached 1/alpha.
func Worse(candidate, live Sample, quantile, factor, alpha float64) bool {
	return WorseAt(candidate, live, quantile, factor, alpha, max(candidate.Dispersion, live.Dispersion, 1))
}

// WorseAt is Worse with a design effect of its own, as NotWorseAt.
func WorseAt(candidate, live Sample, quantile, factor, alpha, dispersion float64) bool {
	return everywhere(candidate, live, quantile, factor, alpha, dispersion, Above, Below, AtLeast)
}

type evidence func(samples, exceeding, p0 float64) float64

// everywhere tells whether the product of both sides' evidences reaches 1/alpha at every threshold. The counts are step functions of the
// threshold, so it is enough to look at the thresholds where one of them steps, and just below.
//
// There is one design effect for both sides: two different ones would discount evidence against more than evidence for.
func everywhere(candidate, live Sample, quantile, factor, alpha, dispersion float64, onCandidate, onLive evidence, countLive func([]float64, float64) int) bool {
	p0, limit := 1-quantile, -math.Log(alpha)
	ofCandidate := remembered(onCandidate, len(candidate.Sorted), dispersion, p0)
	ofLive := remembered(onLive, len(live.Sorted), dispersion, p0)
	holds := func(threshold float64) bool {
		return ofCandidate(Exceeding(candidate.Sorted, threshold))+ofLive(countLive(live.Sorted, threshold/factor)) >= limit
	}
	// Most looks come before a decision and most of them fail near the quantile: try there first.
	for _, first := range []float64{Quantile(candidate.Sorted, quantile), factor * Quantile(live.Sorted, quantile)} {
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
		add(value * factor)
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

// remembered computes each count's evidence once.
func remembered(of evidence, samples int, dispersion, p0 float64) func(count int) float64 {
	known := make(map[int]float64)
	effective := float64(samples) / dispersion
	return func(count int) float64 {
		value, ok := known[count]
		if !ok {
			value = of(effective, float64(count)/dispersion, p0)
			known[count] = value
		}
		return value
	}
}
