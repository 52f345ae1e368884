package watch

import (
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/greenlight-ci/greenlight/pipelines/probe/infer"
)

// Result is everything that the watch saw.
type Result struct {
	URL       string    `json:"url"`
	StartedAt time.Time `json:"startedAt"`
	Seconds   float64   `json:"seconds"`
	// Requests are all that were answered or failed; Failed are those without a complete, valid answer of status 200.
	Requests int `json:"requests"`
	Failed   int `json:"failed"`
	// Reasons counts the failed ones by kind; Failures are the first of them.
	Reasons  map[string]int `json:"reasons"`
	Failures []Failed       `json:"failures"`
	// Redialled is how many requests found their kept connection gone before a byte was written and used a new one. They did not fail.
	Redialled int `json:"redialled"`
	// Servers are all that answered, in the order of their first answer; Versions and Colours count all answers.
	Servers  []Answered     `json:"servers"`
	Versions map[string]int `json:"versions"`
	Colours  map[string]int `json:"colours"`
	// Timeline has one entry for each second in which a request was scheduled, up to MaxTimeline seconds after the start.
	Timeline []Second `json:"timeline"`
	// Latency is that of the answers, from their scheduled time; null without answers.
	Latency *Latency `json:"latency"`
	// ScheduleLateMillis is the largest time by which the watch itself was late to send.
	ScheduleLateMillis float64 `json:"scheduleLateMillis"`
}

const (
	// MaxTimeline is how many seconds from the start the timeline covers.
	MaxTimeline = 3600
	// maxServers bounds how many servers are told apart; a service that names a new version in every answer must not fill the memory.
	maxServers = 64
)

// Failed is one failed request.
type Failed struct {
	At     time.Time `json:"at"`
	Fresh  bool      `json:"fresh"`
	Kind   string    `json:"kind"`
	Reason string    `json:"reason"`
}

// Second is what happened to the requests scheduled within one second.
type Second struct {
	Second   int            `json:"second"`
	Requests int            `json:"requests"`
	Failed   int            `json:"failed"`
	Servers  map[string]int `json:"servers"`
}

// Latency is in milliseconds.
type Latency struct {
	P50 float64 `json:"p50"`
	P95 float64 `json:"p95"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

// record is one request that has ended.
type record struct {
	fresh     bool
	scheduled time.Time
	sent      time.Time
	spent     time.Duration
	redialled bool
	server    Server
	failure   error
}

// tally counts. It is safe for concurrent use, and calls OnEvent for one event at a time.
type tally struct {
	options   Options
	mu        sync.Mutex
	started   time.Time
	servers   []Server
	answered  map[Server]*Answered
	timeline  map[int]*Second
	counts    Counts
	reasons   map[string]int
	failures  []Failed
	redialled int
	histogram *hdrhistogram.Histogram
}

func newTally(options Options) *tally {
	return &tally{
		options: options, answered: make(map[Server]*Answered), timeline: make(map[int]*Second), reasons: make(map[string]int), failures: []Failed{},
		histogram: hdrhistogram.New(1, max(4*options.Timeout.Microseconds(), 1_000_000), 3),
	}
}

func (t *tally) start() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.started = time.Now()
	t.options.OnEvent(Event{Type: Started, At: t.started})
}

func (t *tally) add(r record) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.answered[r.server] == nil && len(t.servers) >= maxServers {
		r.server = Server{Version: "(another version)"}
	}
	second := max(int(r.scheduled.Sub(t.started).Seconds()), 0)
	at := t.timeline[second]
	if at == nil {
		at = &Second{Second: second, Servers: make(map[string]int)}
		if second < MaxTimeline {
			t.timeline[second] = at
		}
	}
	t.counts.Requests++
	at.Requests++
	if r.redialled {
		t.redialled++
	}
	if r.failure != nil {
		at.Failed++
		t.addFailure(r)
		return
	}
	at.Servers[r.server.String()]++
	_ = t.histogram.RecordValue(min(max(r.spent.Microseconds(), 1), t.histogram.HighestTrackableValue()))
	answered := t.answered[r.server]
	if answered == nil {
		answered = &Answered{Server: r.server}
		t.answered[r.server] = answered
		t.servers = append(t.servers, r.server)
	}
	seen := &answered.Kept
	if r.fresh {
		seen = &answered.Fresh
	}
	seen.Answers++
	if seen.Answers == 1 {
		t.options.OnEvent(Event{Type: First, At: r.sent, Server: &r.server, Fresh: r.fresh})
	}
	// Requests end out of order.
	if seen.FirstSent.IsZero() || r.sent.Before(seen.FirstSent) {
		seen.FirstSent = r.sent
	}
	if r.sent.After(seen.LastSent) {
		seen.LastSent = r.sent
	}
}

func (t *tally) addFailure(r record) {
	t.counts.Failed++
	kind := string(infer.KindOf(r.failure))
	if kind == "" {
		kind = "other"
	}
	t.reasons[kind]++
	if len(t.failures) >= t.options.MaxFailures {
		return
	}
	t.failures = append(t.failures, Failed{At: r.sent, Fresh: r.fresh, Kind: kind, Reason: r.failure.Error()})
	t.options.OnEvent(Event{Type: Failure, At: r.sent, Fresh: r.fresh, Kind: kind, Reason: r.failure.Error()})
}

// counted is a copy of the counts. The caller holds the lock.
func (t *tally) counted() Counts {
	counts := t.counts
	counts.Servers = make([]Answered, 0, len(t.servers))
	for _, server := range t.servers {
		counts.Servers = append(counts.Servers, *t.answered[server])
	}
	return counts
}

func (t *tally) tick() {
	t.mu.Lock()
	defer t.mu.Unlock()
	counts := t.counted()
	t.options.OnEvent(Event{Type: Tick, At: time.Now(), Counts: &counts})
}

func (t *tally) result(late time.Duration) Result {
	t.mu.Lock()
	defer t.mu.Unlock()
	counts := t.counted()
	result := Result{
		URL: t.options.URL, StartedAt: t.started.UTC(), Seconds: round(time.Since(t.started).Seconds()), Requests: counts.Requests, Failed: counts.Failed,
		Reasons: t.reasons, Failures: t.failures, Redialled: t.redialled, Servers: counts.Servers, Versions: make(map[string]int), Colours: make(map[string]int),
		Timeline: []Second{}, ScheduleLateMillis: round(late.Seconds() * 1000),
	}
	for _, answered := range counts.Servers {
		result.Versions[answered.Version] += answered.Fresh.Answers + answered.Kept.Answers
		result.Colours[answered.Colour] += answered.Fresh.Answers + answered.Kept.Answers
	}
	for _, second := range slices.Sorted(maps.Keys(t.timeline)) {
		result.Timeline = append(result.Timeline, *t.timeline[second])
	}
	if t.histogram.TotalCount() > 0 {
		at := func(percent float64) float64 { return float64(t.histogram.ValueAtQuantile(percent)) / 1000 }
		result.Latency = &Latency{P50: at(50), P95: at(95), P99: at(99), Max: float64(t.histogram.Max()) / 1000}
	}
	return result
}

func round(value float64) float64 { return math.Round(value*1000) / 1000 }
