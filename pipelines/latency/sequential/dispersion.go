package sequential

import "math"

// Dispersion is the design effect of the indicators 1{sample > threshold} of samples in the order of their arrival: the
// factor, at least 1, by which dependence makes their mean vary more than that of independent samples. It is estimated from the means
// of about √n blocks (batch means), so runs of slow answers that are shorter than a block, √n samples, are accounted for.
func Dispersion(inOrder []float64, threshold float64) float64 {
	n := len(inOrder)
	size := int(math.Sqrt(float64(n)))
	if size < 5 {
		return 1
	}
	blocks := n / size
	var sum, squares float64
	for block := range blocks {
		exceeding := 0.0
		for _, sample := range inOrder[block*size : (block+1)*size] {
			if sample > threshold {
				exceeding++
			}
		}
		mean := exceeding / float64(size)
		sum += mean
		squares += mean * mean
	}
	mean := sum / float64(blocks)
	independent := mean * (1 - mean) / float64(size)
	if independent <= 0 {
		return 1
	}
	variance := (squares - sum*mean) / float64(blocks-1)
	return math.Max(1, variance/independent)
}
