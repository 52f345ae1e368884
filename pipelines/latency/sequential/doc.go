// Package sequential decides whether a latency quantile keeps a limit while the samples come in, at any time and as often
// as one likes to look, with a bounded chance to be wrong.
//
// # One sample: quantile against a limit
//
// Let X be a latency and Q its q-quantile, inf{x: P(X ≤ x) ≥ q}. Then Q ≤ x exactly if P(X > x) ≤ 1-q. So the question
// "is the p99 at most x" is the question whether the probability p of an exceedance is at most p0 = 1-q, and only the
// indicators 1{X > x} matter: nothing is assumed about the shape of the latencies. This is the duality under the
// confidence sequences for quantiles of Howard and Ramdas, "Sequential estimation of quantiles with applications to A/B
// testing and best-arm identification", Bernoulli 28(3), 2022, arXiv 1906.09712.
//
// For an alternative p1 < p0, the likelihood ratio after n samples with S exceedances,
//
//	L(p1) = (p1/p0)^S · ((1-p1)/(1-p0))^(n-S),
//
// is a non-negative supermartingale under every p ≥ p0, since the expectation of one factor, p·p1/p0 + (1-p)(1-p1)/(1-p0),
// is 1 at p = p0 and falls as p grows. A mixture of such ratios over a distribution on (0, p0) is one too, and starts at 1. By
// Ville's inequality the chance that it ever reaches 1/α is at most α. So "the mixture has reached 1/α" proves p < p0
// with error α, whenever one looks. With a Beta distribution truncated to (0, p0) the mixture has a closed form with the incomplete
// beta function (the method of mixtures of Robbins; Howard, Ramdas, McAuliffe, Sekhon, "Time-uniform, nonparametric,
// nonasymptotic confidence sequences", Annals of Statistics 49(2), 2021, arXiv 1810.08240, section 3.2, uses the same
// Beta mixture untruncated). The mirror image, p1 in (p0, 1), proves p > p0. See Below and Above.
//
// All limits that are not rejected form a confidence sequence for the exceedance probability, and through the order statistics one for
// the quantile itself: see Bounds.
//
// # Two samples: not more than y % worse than live
//
// Let c be the candidate, l live and f = 1 + y/100. If the candidate is worse, Q_c > f·Q_l, take t = f·Q_l: then P(c > t) > 1-q,
// and P(l > t/f) ≤ 1-q. So at this one t, which is unknown, both the evidence of c for "p < 1-q" and the evidence of l for
// "p > 1-q" are supermartingales, and so is their product, the two samples being independent given the past. The smallest product over all t is at
// most the product at that t. So "the product has reached 1/α at every t" proves Q_c ≤ f·Q_l with error α. In the same way, if
// the candidate is good, take t = Q_c: P(c > t) ≤ 1-q and P(l ≥ t/f) ≥ 1-q, and "the product of the opposite evidences has reached
// 1/α at every t" proves that it is worse. It is enough to look at the t where a count changes. This decides earlier than to ask
// that two confidence intervals at α/2 each do not overlap (the rule of Howard and Ramdas' section 5 and of Lindon, Sanden, Shirikian, "Rapid regression detection in
// software deployments through sequential testing", KDD 2022, arXiv 2205.14762), since strong evidence on one side makes up for
// weak evidence on the other; whatever those intervals prove at α/2 each side, the product proves at α.
//
// # Dependent samples
//
// Latencies come in runs: one stall delays all requests that wait behind it. The likelihood ratios above take them for
// independent and would decide too early. So n and S are divided by the design effect D ≥ 1, the factor by which the variance of
// block means of the indicators is larger than independence would make it (Dispersion). For a fixed D the deflated ratio L^(1/D) is a
// supermartingale too (Jensen). And whatever D is, also when it is estimated from the same samples, a deflated mixture that has
// reached 1/α implies that the plain one has: the mean of L^(1/D) is at most the mean of L to the power 1/D, and
// (1/α)^D ≥ 1/α. So for independent samples the error bound stays exact; for dependent ones the correction is approximate, as every estimated
// effective sample size is: runs that have not happened yet, or happen once, cannot be estimated. The callers take the larger of the
// design effects at the limit and at the sample's own quantile, since the slowest samples show their runs also where none is above the limit.
//
// # Several limits
//
// A candidate passes only if every limit passes. So a bad candidate passes with a chance of at most α, without any split: the limit that it
// breaks must err. A good candidate is rejected if any of k tests errs, so each may reject with α/k.
package sequential
