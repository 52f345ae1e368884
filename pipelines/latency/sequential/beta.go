package sequential

import "math"

// logBeta is the logarithm of the complete beta function.
func logBeta(a, b float64) float64 {
	la, _ := math.Lgamma(a)
	lb, _ := math.Lgamma(b)
	lab, _ := math.Lgamma(a + b)
	return la + lb - lab
}

// logIncompleteBeta is the logarithm of ∫₀ˣ t^(a-1) (1-t)^(b-1) dt, exact also where the integral underflows.
func logIncompleteBeta(x, a, b float64) float64 {
	switch {
	case x <= 0:
		return math.Inf(-1)
	case x >= 1:
		return logBeta(a, b)
	}
	front := a*math.Log(x) + b*math.Log1p(-x)
	if x < (a+1)/(a+b+2) {
		return front - math.Log(a) + math.Log(betaFraction(x, a, b))
	}
	// The integral is the larger part here: the complement is small, and subtracting it loses nothing.
	whole := logBeta(a, b)
	complement := math.Exp(front - math.Log(b) + math.Log(betaFraction(1-x, b, a)) - whole)
	return whole + math.Log1p(-math.Min(complement, 1-1e-16))
}

// betaFraction is the continued fraction of the incomplete beta function (DLMF 8.17.22) by Lentz's method.
func betaFraction(x, a, b float64) float64 {
	const tiny, precision, most = 1e-300, 1e-14, 100_000
	c, d := 1.0, 1-(a+b)*x/(a+1)
	if math.Abs(d) < tiny {
		d = tiny
	}
	d = 1 / d
	result := d
	for m := 1.0; m <= most; m++ {
		even := m * (b - m) * x / ((a + 2*m - 1) * (a + 2*m))
		odd := -(a + m) * (a + b + m) * x / ((a + 2*m) * (a + 2*m + 1))
		for _, coefficient := range [2]float64{even, odd} {
			if d = 1 + coefficient*d; math.Abs(d) < tiny {
				d = tiny
			}
			if c = 1 + coefficient/c; math.Abs(c) < tiny {
				c = tiny
			}
			d = 1 / d
			result *= d * c
		}
		if math.Abs(d*c-1) < precision {
			break
		}
	}
	return result
}
