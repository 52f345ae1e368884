package sequential

import (
	"math"
	"sort"
)

// The priors of the mixtures. Below: Beta(1/2, 1) on (0, p0) leans to small probabilities, as a healthy service exceeds
// its limit rarely or never. Above: nearly dp/p on (p0, 1), which is equally ready for twice and for fifty times p0. They
// affect how soon a decision comes, never the chance that it is wrong.
const (
	belowShape = 0.5
	aboveShape = 0.01
)

// Below is the logarithm of the evidence that the exceedance probability is below p0, after samples with exceeding ones
// among them: under any probability ≥ p0 the chance that it ever reaches log(1/α) is at most α. The counts may be fractional.
func Below(samples, exceeding, p0 float64) float64 {
	mixture := logIncompleteBeta(p0, belowShape+exceeding, 1+samples-exceeding)
	prior := logIncompleteBeta(p0, belowShape, 1)
	return mixture - prior - exceeding*math.Log(p0) - (samples-exceeding)*math.Log1p(-p0)
}

// Above is the logarithm of the evidence that the exceedance probability is above p0: under any probability ≤ p0 the chance that it
// ever reaches log(1/α) is at most α.
func Above(samples, exceeding, p0 float64) float64 {
	mixture := logIncompleteBeta(1-p0, 1+samples-exceeding, aboveShape+exceeding)
	prior := logIncompleteBeta(1-p0, 1, aboveShape)
	return mixture - prior - exceeding*math.Log(p0) - (samples-exceeding)*math.Log1p(-p0)
}

// Least is the smallest number of samples after which Below can reach log(1/alpha): the number it takes when none exceeds.
// No test needs fewer samples for a pass.
func Least(p0, alpha float64) int {
	const most = 1 << 40
	return sort.Search(most, func(n int) bool { return Below(float64(n), 0, p0) >= -math.Log(alpha) })
}

// MoreSamples estimates how many samples in all a one-sample test would need to decide if the exceedances keep
// their present share, and which way it leans. ok is false where that is more than a thousand times the present number.
func MoreSamples(samples, exceeding, p0, alphaPass, alphaFail float64) (total int, leansPass, ok bool) {
	leansPass = exceeding < samples*p0
	evidence, alpha := Above, alphaFail
	if leansPass {
		evidence, alpha = Below, alphaPass
	}
	share := exceeding / math.Max(samples, 1)
	most := int(samples*1000) + 1
	total = sort.Search(most, func(n int) bool { return evidence(float64(n), float64(n)*share, p0) >= -math.Log(alpha) })
	return total, leansPass, total < most
}

// Interval is a range for a quantile, in the unit of the samples. High is +Inf where there is no upper bound yet, Low is 0 where
// there is no lower one.
type Interval struct{ Low, High float64 }

// Bounds is the confidence sequence of the q-quantile after the given samples in ascending order: at all times together,
// each end is wrong with a chance of at most alpha. dispersion is the design effect, at least 1.
func Bounds(sorted []float64, quantile, alpha, dispersion float64) Interval {
	n := len(sorted)
	p0, limit := 1-quantile, -math.Log(alpha)
	effective := float64(n) / dispersion
	// Both evidences are monotone in the count, so the counts that they do not rule out are found by bisection.
	tooMany := sort.Search(n+1, func(s int) bool { return Above(effective, float64(s)/dispersion, p0) >= limit })
	tooFew := sort.Search(n+1, func(s int) bool { return Below(effective, float64(s)/dispersion, p0) < limit })
	bounds := Interval{Low: 0, High: math.Inf(1)}
	if rank := n - (tooMany - 1); rank >= 1 {
		bounds.Low = sorted[rank-1]
	}
	if tooFew >= 1 && tooFew <= n {
		bounds.High = sorted[n-tooFew]
	}
	return bounds
}

// Quantile is the empirical quantile of samples in ascending order, 0 where there are none.
func Quantile(sorted []float64, quantile float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	// Without the small term, 0.99·1000 = 990.0000000000001 would take the rank above.
	rank := int(math.Ceil(quantile*float64(len(sorted)) - 1e-9))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// Exceeding counts the samples in ascending order that are above the threshold.
func Exceeding(sorted []float64, threshold float64) int {
	return len(sorted) - sort.Search(len(sorted), func(i int) bool { return sorted[i] > threshold })
}

// AtLeast counts the samples in ascending order that are at or above the threshold.
func AtLeast(sorted []float64, threshold float64) int {
	return len(sorted) - sort.SearchFloat64s(sorted, threshold)
}
