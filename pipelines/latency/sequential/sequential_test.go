package sequential

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestLogIncompleteBeta(t *testing.T) {
	// ∫₀ˣ t^(a-1) (1-t)^(b-1) dt, from closed forms.
	for _, c := range []struct {
		name           string
		x, a, b, value float64
	}{
		{"uniform", 0.3, 1, 1, 0.3},
		{"power", 0.2, 3, 1, 0.008 / 3},
		{"mirrored power", 0.2, 1, 3, (1 - 0.512) / 3},
		{"arcsine", 0.5, 0.5, 0.5, math.Pi / 2},
		{"whole", 1, 2, 3, 1.0 / 12},
		{"polynomial", 0.4, 2, 2, 0.16/2 - 0.064/3},
		{"upper part", 0.9, 2, 2, 0.81/2 - 0.729/3},
	} {
		t.Run(c.name, func(t *testing.T) {
			require.InEpsilon(t, c.value, math.Exp(logIncompleteBeta(c.x, c.a, c.b)), 1e-10)
		})
	}
	// A binomial tail far below the smallest float: only its logarithm exists.
	require.InDelta(t, 4000*math.Log(0.1)-math.Log(4000), logIncompleteBeta(0.1, 4000, 1), 1e-6)
	require.True(t, math.IsInf(logIncompleteBeta(0, 2, 2), -1))
}

// The evidence is a mixture of likelihood ratios: compare the closed form with a numerical mixture.
func TestEvidenceIsTheMixture(t *testing.T) {
	const p0, samples = 0.1, 50.0
	for _, exceeding := range []float64{0, 1, 3.5, 12, 50} {
		ratio := func(p float64) float64 {
			return math.Exp(exceeding*math.Log(p/p0) + (samples-exceeding)*math.Log((1-p)/(1-p0)))
		}
		below := integrate(0, p0, func(p float64) float64 { return 0.5 * math.Pow(p, -0.5) / math.Sqrt(p0) * ratio(p) })
		require.InEpsilon(t, below, math.Exp(Below(samples, exceeding, p0)), 1e-3, "below, %v", exceeding)
		above := integrate(p0, 1, func(p float64) float64 {
			return aboveShape * math.Pow(p, aboveShape-1) / (1 - math.Pow(p0, aboveShape)) * ratio(p)
		})
		require.InEpsilon(t, above, math.Exp(Above(samples, exceeding, p0)), 1e-3, "above, %v", exceeding)
	}
}

func integrate(from, to float64, f func(float64) float64) float64 {
	// The substitution x = u² removes the singularity at 0.
	const steps = 200_000
	low, high := math.Sqrt(from), math.Sqrt(to)
	width, sum := (high-low)/steps, 0.0
	for i := range steps {
		u := low + (float64(i)+0.5)*width
		sum += f(u*u) * 2 * u * width
	}
	return sum
}

func TestEvidenceIsMonotone(t *testing.T) {
	for _, n := range []float64{10, 200, 5000} {
		for s := 1.0; s <= min(n, 60); s++ {
			require.LessOrEqual(t, Below(n, s, 0.01), Below(n, s-1, 0.01))
			require.GreaterOrEqual(t, Above(n, s, 0.01), Above(n, s-1, 0.01))
		}
	}
}

func TestLeast(t *testing.T) {
	n := Least(0.01, 0.01)
	require.GreaterOrEqual(t, Below(float64(n), 0, 0.01), math.Log(100))
	require.Less(t, Below(float64(n-1), 0, 0.01), math.Log(100))
	t.Logf("a p99 limit takes at least %d requests at alpha 0.01, %d at 0.001; a p50 limit %d", n, Least(0.01, 0.001), Least(0.5, 0.01))
}

// With looks after every sample, a stream exactly at the limit is decided, wrongly either way, in no more than alpha of the runs.
func TestFalseAlarms(t *testing.T) {
	const runs, samples, p0, alpha = 1500, 3000, 0.05, 0.05
	limit := -math.Log(alpha)
	passAt, failAt := thresholds(samples, p0, limit)
	random := rand.New(rand.NewPCG(1, 2))
	passes, fails := 0, 0
	for range runs {
		exceeding, passed, failed := 0, false, false
		for n := 1; n <= samples; n++ {
			if random.Float64() < p0 {
				exceeding++
			}
			passed = passed || exceeding <= passAt[n]
			failed = failed || exceeding >= failAt[n]
		}
		if passed {
			passes++
		}
		if failed {
			fails++
		}
	}
	t.Logf("of %d runs at the limit %d passed and %d failed, alpha %v", runs, passes, fails, alpha)
	slack := 3 * math.Sqrt(runs*alpha*(1-alpha))
	require.LessOrEqual(t, float64(passes), runs*alpha+slack)
	require.LessOrEqual(t, float64(fails), runs*alpha+slack)
}

// thresholds are the counts of each n that decide: at most passAt exceeding passes, at least failAt fails.
func thresholds(samples int, p0, limit float64) (passAt, failAt []int) {
	passAt, failAt = make([]int, samples+1), make([]int, samples+1)
	passed, failed := -1, 1
	for n := 1; n <= samples; n++ {
		for Below(float64(n), float64(passed+1), p0) >= limit {
			passed++
		}
		for failed <= n && Above(float64(n), float64(failed), p0) < limit {
			failed++
		}
		passAt[n], failAt[n] = passed, failed
	}
	return passAt, failAt
}

func TestBoundsCoverAtAllTimes(t *testing.T) {
	const runs, samples, quantile, alpha = 300, 1000, 0.9, 0.05
	truth := math.Exp(1.2815515655446004) // the p90 of a log-normal
	random := rand.New(rand.NewPCG(3, 4))
	misses := 0
	for range runs {
		var sorted []float64
		missed := false
		for n := 1; n <= samples; n++ {
			x := math.Exp(random.NormFloat64())
			at, _ := slices.BinarySearch(sorted, x)
			sorted = slices.Insert(sorted, at, x)
			if n%10 == 0 {
				bounds := Bounds(sorted, quantile, alpha/2, 1)
				missed = missed || truth < bounds.Low || truth > bounds.High
			}
		}
		if missed {
			misses++
		}
	}
	t.Logf("%d of %d runs left the bounds at some time, alpha %v", misses, runs, alpha)
	require.LessOrEqual(t, float64(misses), runs*alpha+3*math.Sqrt(runs*alpha))
}

func TestBoundsOfFewSamples(t *testing.T) {
	bounds := Bounds([]float64{5}, 0.99, 0.01, 1)
	require.Zero(t, bounds.Low)
	require.True(t, math.IsInf(bounds.High, 1))
	// Two of three samples above the p99 would be a 3 in 10,000 chance.
	require.Equal(t, 2.0, Bounds([]float64{1, 2, 3}, 0.99, 0.01, 1).Low)
}

func TestQuantile(t *testing.T) {
	sorted := make([]float64, 1000)
	for i := range sorted {
		sorted[i] = float64(i + 1)
	}
	require.Equal(t, 990.0, Quantile(sorted, 0.99))
	require.Equal(t, 500.0, Quantile(sorted, 0.5))
	require.Equal(t, 1000.0, Quantile(sorted, 0.9999))
	require.Equal(t, 1.0, Quantile(sorted, 0.0001))
	require.Zero(t, Quantile(nil, 0.5))
	require.Equal(t, 10, Exceeding(sorted, 990))
	require.Equal(t, 11, AtLeast(sorted, 990))
}

// compareStreams runs a comparison to a decision, with looks at growing distances.
func compareStreams(samples int, quantile, factor, alpha float64, candidate, live func() float64) (decision string, n int) {
	var c, l []float64
	comparison := Comparison{Quantile: quantile, Factor: factor, AlphaPass: alpha, AlphaFail: alpha}
	for n = 1; n <= samples; n++ {
		c, l = append(c, candidate()), append(l, live())
		if n < 50 || n%max(10, n/40) != 0 {
			continue
		}
		cs, ls := Sample{Sorted: slices.Sorted(slices.Values(c)), Dispersion: 1}, Sample{Sorted: slices.Sorted(slices.Values(l)), Dispersion: 1}
		if comparison.NotWorse(cs, ls) {
			return "pass", n
		}
		if comparison.Worse(cs, ls) {
			return "fail", n
		}
	}
	return "undecided", samples
}

func TestCompareFalseAlarms(t *testing.T) {
	const runs, alpha, quantile = 150, 0.1, 0.9
	random := rand.New(rand.NewPCG(5, 6))
	logNormal := func(scale float64) func() float64 {
		return func() float64 { return scale * math.Exp(0.5*random.NormFloat64()) }
	}
	counts := map[string]int{}
	for range runs {
		// Exactly at the limit: 20 % worse, with 20 % allowed. Any decision is one of the two errors.
		decision, _ := compareStreams(1500, quantile, 1.2, alpha, logNormal(1.2), logNormal(1))
		counts[decision]++
	}
	t.Logf("of %d runs exactly at the relative limit: %v, alpha %v", runs, counts, alpha)
	slack := 3 * math.Sqrt(runs*alpha)
	require.LessOrEqual(t, float64(counts["pass"]), runs*alpha+slack)
	require.LessOrEqual(t, float64(counts["fail"]), runs*alpha+slack)
}

func TestComparePower(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 8))
	logNormal := func(scale float64) func() float64 {
		return func() float64 { return scale * math.Exp(0.5*random.NormFloat64()) }
	}
	for _, c := range []struct {
		name     string
		scale    float64
		quantile float64
		want     string
		within   int
	}{
		{"same p50, 20 % allowed", 1, 0.5, "pass", 2000},
		{"same p95, 20 % allowed", 1, 0.95, "pass", 8000},
		{"p50 half as much again", 1.5, 0.5, "fail", 2000},
		{"p95 doubled", 2, 0.95, "fail", 2000},
		{"ten times slower", 10, 0.99, "fail", 2000},
		{"half as slow", 0.5, 0.99, "pass", 3000},
		{"all fail", math.Inf(1), 0.99, "fail", 100},
	} {
		t.Run(c.name, func(t *testing.T) {
			decision, n := compareStreams(c.within, c.quantile, 1.2, 0.01, logNormal(c.scale), logNormal(1))
			t.Logf("%s after %d requests to each side", decision, n)
			require.Equal(t, c.want, decision)
		})
	}
}

// Whatever two confidence sequences at alpha/2 each prove by not overlapping, the product proves too.
func TestCompareIsNotWeakerThanTwoBounds(t *testing.T) {
	const alpha, quantile, factor = 0.05, 0.9, 1.1
	random := rand.New(rand.NewPCG(9, 10))
	for run := range 40 {
		scale := 0.4 + 1.6*random.Float64()
		var c, l []float64
		for range 200 + 40*run {
			c, l = append(c, scale*random.ExpFloat64()), append(l, random.ExpFloat64())
		}
		slices.Sort(c)
		slices.Sort(l)
		cb, lb := Bounds(c, quantile, alpha/2, 1), Bounds(l, quantile, alpha/2, 1)
		cs, ls := Sample{Sorted: c, Dispersion: 1}, Sample{Sorted: l, Dispersion: 1}
		comparison := Comparison{Quantile: quantile, Factor: factor, AlphaPass: alpha, AlphaFail: alpha}
		if cb.High <= factor*lb.Low {
			require.True(t, comparison.NotWorse(cs, ls))
		}
		if cb.Low > factor*lb.High {
			require.True(t, comparison.Worse(cs, ls))
		}
	}
}

func TestDispersion(t *testing.T) {
	random := rand.New(rand.NewPCG(11, 12))
	independent, runs := make([]float64, 4000), make([]float64, 4000)
	high := 0
	for i := range independent {
		independent[i] = random.Float64()
		// Runs of twenty slow requests in a row, 5 % of all.
		if high == 0 && random.Float64() < 0.05/20 {
			high = 20
		}
		if high > 0 {
			high--
			runs[i] = 1
		}
	}
	require.Less(t, Dispersion(independent, 0.95), 2.0)
	require.Greater(t, Dispersion(runs, 0.5), 8.0)
	require.Equal(t, 1.0, Dispersion(independent, 2), "no exceedance tells nothing")
	require.Equal(t, 1.0, Dispersion(independent[:10], 0.5), "too few to tell")
}

func BenchmarkBelow(b *testing.B) {
	for b.Loop() {
		Below(100_000, 900, 0.01)
	}
}

func BenchmarkCompareNearTheLimit(b *testing.B) {
	random := rand.New(rand.NewPCG(13, 14))
	var c, l []float64
	for range 20_000 {
		c, l = append(c, 1.1*math.Exp(0.5*random.NormFloat64())), append(l, math.Exp(0.5*random.NormFloat64()))
	}
	slices.Sort(c)
	slices.Sort(l)
	comparison := Comparison{Quantile: 0.99, Factor: 1.2, AlphaPass: 0.01, AlphaFail: 0.01}
	for b.Loop() {
		comparison.NotWorse(Sample{Sorted: c, Dispersion: 1}, Sample{Sorted: l, Dispersion: 1})
	}
}
