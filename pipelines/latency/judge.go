package latency

import (
	"fmt"
	"math"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/greenlight-ci/greenlight/pipelines/probe/infer"
)

// judge takes the samples and decides. It knows neither clock nor network, so a synthetic stream tests it.
type judge struct {
	options         Options
	compares        bool
	candidate, live stream
	tests           []Test
	nextLook        int
	reasons         map[string]int
	firstFailure    string
	redialled       int
	latest          side // the samples of the last look
	latestLive      side
	nextLog         time.Time
}

// stream puts one side's samples into the order of their scheduled times. Requests end out of order, the slow ones last; a decision that
// looked at the finished ones alone would see too many fast ones.
type stream struct {
	waiting   map[int]sample
	inOrder   []float64
	errors    int
	histogram *hdrhistogram.Histogram
}

func (s *stream) add(one sample) {
	s.waiting[one.index] = one
	for {
		next, ok := s.waiting[len(s.inOrder)]
		if !ok {
			return
		}
		delete(s.waiting, next.index)
		s.inOrder = append(s.inOrder, next.millis)
		if next.failure != nil {
			s.errors++
		}
		// Values outside the range cannot be recorded; the range is twice the timeout.
		_ = s.histogram.RecordValue(min(max(next.spent.Microseconds(), 1), s.histogram.HighestTrackableValue()))
	}
}

func newJudge(options Options, compares bool) *judge {
	newStream := func() stream {
		return stream{waiting: make(map[int]sample), histogram: newHistogram(options.Timeout)}
	}
	return &judge{
		options: options, compares: compares, candidate: newStream(), live: newStream(), tests: options.tests(),
		nextLook: options.MinRequests, reasons: make(map[string]int),
	}
}

// add takes a sample and tells whether the gate has decided.
func (j *judge) add(one sample) bool {
	to, name := &j.candidate, "candidate"
	if one.live {
		to, name = &j.live, "live"
	}
	if one.failure != nil {
		j.reasons[name+" "+string(infer.KindOf(one.failure))]++
		if j.firstFailure == "" && !one.live {
			j.firstFailure = one.failure.Error()
		}
	}
	if one.redialled {
		j.redialled++
	}
	to.add(one)
	n := j.judged()
	if n < j.nextLook || j.options.Mode == Fixed || j.decided() {
		return j.decided()
	}
	// Looks cost time, not certainty: about 230 of them from the first hundred requests to the ten-thousandth.
	j.nextLook = max(n+1, int(math.Ceil(float64(n)*1.02)))
	j.look(n)
	if now := time.Now(); now.After(j.nextLog) {
		j.nextLog = now.Add(2 * time.Second)
		j.options.Log(fmt.Sprintf("%d requests to each side: %s", n, j.summary()))
	}
	return j.decided()
}

// judged is the number of requests to each side that can be compared.
func (j *judge) judged() int {
	n := len(j.candidate.inOrder)
	if j.compares {
		n = min(n, len(j.live.inOrder))
	}
	return n
}

func (j *judge) look(n int) {
	j.take(n)
	for i := range j.tests {
		j.tests[i].look(j.latest, j.latestLive)
	}
}

func (j *judge) take(n int) {
	j.latest = side{inOrder: j.candidate.inOrder[:n], sorted: sorted(j.candidate.inOrder[:n])}
	j.latestLive = side{}
	if j.compares {
		j.latestLive = side{inOrder: j.live.inOrder[:n], sorted: sorted(j.live.inOrder[:n])}
	}
}

// decision is Fail when any test failed, Pass when all passed.
func (j *judge) decision() string {
	all := Pass
	for _, test := range j.tests {
		if test.Decision == Fail {
			return Fail
		}
		if test.Decision == Undecided {
			all = Undecided
		}
	}
	return all
}

func (j *judge) decided() bool { return j.decision() != Undecided }

func (j *judge) summary() string {
	text := ""
	for i, test := range j.tests {
		if i > 0 {
			text += ", "
		}
		text += test.Name + " " + test.Decision
	}
	return text
}

func (j *judge) result() Result {
	n := j.judged()
	if j.options.Mode == Fixed {
		j.take(n)
		if n > 0 && n >= j.options.MinRequests {
			for i := range j.tests {
				j.tests[i].compareWindow(j.latest, j.latestLive)
			}
		}
	} else if !j.decided() && n >= j.options.MinRequests {
		j.look(n) // the samples since the last look
	}
	if j.latest.sorted == nil {
		j.take(n)
	}
	for i := range j.tests {
		j.tests[i].describe(j.latest, j.latestLive, j.options.Alpha/2)
	}
	result := Result{
		Decision: j.decision(), Candidate: percentiles(j.candidate.histogram), Live: percentiles(j.live.histogram), Samples: len(j.latest.sorted),
		Errors: j.candidate.errors, LiveErrors: j.live.errors, Reasons: j.reasons, FirstFailure: j.firstFailure, Redialled: j.redialled,
		Mode: j.options.Mode, Rate: j.options.Rate, Arrivals: j.options.Arrivals, Connections: j.options.Connections, Alpha: j.options.Alpha, Tests: j.tests,
	}
	if result.Mode == Fixed {
		result.Alpha = 0
	}
	result.Passed = result.Decision == Pass
	result.Reason = j.reason(result)
	return result
}

func (j *judge) reason(result Result) string {
	if result.Samples < j.options.MinRequests {
		text := fmt.Sprintf("only %d of the at least %d requests were answered or failed within %s", result.Samples, j.options.MinRequests, j.options.Duration)
		if j.firstFailure != "" {
			text += "; first failure: " + j.firstFailure
		}
		return text
	}
	for _, want := range []string{Fail, Undecided} {
		for _, test := range j.tests {
			if test.Decision != want {
				continue
			}
			text := fmt.Sprintf("%s: %s", test.Name, test.Detail)
			if want == Undecided {
				text = fmt.Sprintf("undecided after %d requests, which counts as failed: %s", result.Samples, text)
			}
			if result.Errors > 0 && j.firstFailure != "" {
				text += fmt.Sprintf("; %d requests failed, the first: %s", result.Errors, j.firstFailure)
			}
			return text
		}
	}
	return fmt.Sprintf("%s after %d requests", j.summary(), result.Samples)
}
