package watch

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/greenlight-ci/greenlight/pipelines/probe/infer"
)

// service answers as the version that is set, and as handler says where it takes the request.
func service(t *testing.T, handler func(n int64, w http.ResponseWriter, r *http.Request) bool) (string, *atomic.Value) {
	t.Helper()
	var version atomic.Value
	version.Store("v1")
	var count atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if handler != nil && handler(count.Add(1), w, r) {
			return
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"outputs":[[1]],"version":%q,"colour":"blue"}`, version.Load())
	}))
	t.Cleanup(server.Close)
	return server.URL, &version
}

func options(url string) Options {
	return Options{URL: url, Request: infer.Request{Body: json.RawMessage(`{}`)}, Rate: 200, Arrivals: "constant", MaxRequests: 60, Timeout: 3 * time.Second}
}

func TestCountsWhoAnswers(t *testing.T) {
	url, version := service(t, func(n int64, _ http.ResponseWriter, _ *http.Request) bool { return false })
	o := options(url)
	var mu sync.Mutex
	var events []Event
	o.OnEvent = func(event Event) {
		mu.Lock()
		defer mu.Unlock()
		events = append(events, event)
		if event.Type == Tick && event.Counts.Requests > 20 {
			version.Store("v2")
		}
	}
	o.TickEvery = 20 * time.Millisecond
	result, err := Run(t.Context(), o)
	require.NoError(t, err)
	require.Equal(t, 60, result.Requests)
	require.Zero(t, result.Failed, result.Failures)
	require.Len(t, result.Servers, 2)
	require.Equal(t, 60, result.Versions["v1"]+result.Versions["v2"])
	require.Equal(t, map[string]int{"blue": 60}, result.Colours)
	fresh, kept := 0, 0
	for _, server := range result.Servers {
		fresh, kept = fresh+server.Fresh.Answers, kept+server.Kept.Answers
	}
	require.Equal(t, 30, fresh)
	require.Equal(t, 30, kept)
	require.True(t, result.Servers[1].Fresh.FirstSent.After(result.Servers[0].Fresh.FirstSent))
	require.NotNil(t, result.Latency)
	require.NotEmpty(t, result.Timeline)
	require.Equal(t, Started, events[0].Type)
	require.Equal(t, Tick, events[len(events)-1].Type)
	require.Equal(t, 60, events[len(events)-1].Counts.Requests)
	firsts := 0
	for _, event := range events {
		if event.Type == First {
			firsts++
		}
	}
	require.Equal(t, 4, firsts, "two versions on fresh and on kept connections")
}

func TestCountsFailures(t *testing.T) {
	url, _ := service(t, func(n int64, w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Type", "application/json")
		switch n % 5 {
		case 0:
			w.WriteHeader(http.StatusServiceUnavailable)
		case 1:
			_, _ = io.WriteString(w, `{"outputs":[[NaN]]}`)
		case 2:
			_, _ = io.WriteString(w, `{"outputs":[]}`)
		case 3:
			panic(http.ErrAbortHandler) // closes the connection
		default:
			return false
		}
		return true
	})
	o := options(url)
	o.MaxFailures = 3
	result, err := Run(t.Context(), o)
	require.NoError(t, err)
	require.Equal(t, 60, result.Requests)
	require.Equal(t, 48, result.Failed)
	require.Equal(t, map[string]int{"status": 12, "not-finite": 12, "no-outputs": 12, "closed": 12}, result.Reasons)
	require.Len(t, result.Failures, 3)
}

func TestTimeoutsAndFullConnectionsAreFailures(t *testing.T) {
	url, _ := service(t, func(_ int64, _ http.ResponseWriter, r *http.Request) bool {
		<-r.Context().Done()
		return true
	})
	o := options(url)
	o.Timeout, o.KeptConnections, o.FreshInFlight = 200*time.Millisecond, 1, 2
	result, err := Run(t.Context(), o)
	require.NoError(t, err)
	require.Equal(t, 60, result.Failed)
	require.Positive(t, result.Reasons["timeout"])
	require.Positive(t, result.Reasons["not-sent"])
}

func TestStopAwaitsWhatIsInFlight(t *testing.T) {
	url, _ := service(t, func(int64, http.ResponseWriter, *http.Request) bool {
		time.Sleep(100 * time.Millisecond)
		return false
	})
	o := options(url)
	stop := make(chan struct{})
	o.MaxRequests, o.Stop, o.KeptConnections = 0, stop, 32
	time.AfterFunc(300*time.Millisecond, func() { close(stop) })
	result, err := Run(t.Context(), o)
	require.NoError(t, err)
	require.Positive(t, result.Requests)
	require.Zero(t, result.Failed, result.Failures)

	o.Stop, o.Duration = nil, 200*time.Millisecond
	start := time.Now()
	_, err = Run(t.Context(), o)
	require.NoError(t, err)
	require.Less(t, time.Since(start), 3*time.Second)
}

func TestManyVersionsAreBounded(t *testing.T) {
	url, _ := service(t, func(n int64, w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"outputs":[[1]],"version":"v%d"}`, n)
		return true
	})
	o := options(url)
	o.MaxRequests, o.Rate = 200, 1000
	result, err := Run(t.Context(), o)
	require.NoError(t, err)
	require.Equal(t, 200, result.Requests)
	require.LessOrEqual(t, len(result.Servers), maxServers+1)
}

func TestDefaultRequestIsReady(t *testing.T) {
	url, _ := service(t, func(_ int64, w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/ready" || r.Method != http.MethodGet {
			w.WriteHeader(http.StatusTeapot)
			return true
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"status":"ready","version":"v9"}`)
		return true
	})
	result, err := Run(t.Context(), Options{URL: url, MaxRequests: 10, Rate: 200})
	require.NoError(t, err)
	require.Equal(t, map[string]int{"v9": 10}, result.Versions)
}

func TestBadOptions(t *testing.T) {
	for name, change := range map[string]func(*Options){
		"no URL":   func(o *Options) { o.URL = "" },
		"rate":     func(o *Options) { o.Rate = -3 },
		"outputs":  func(o *Options) { o.Outputs = "x" },
		"duration": func(o *Options) { o.Duration = 48 * time.Hour },
		"kept":     func(o *Options) { o.KeptConnections = -1 },
		"ticks":    func(o *Options) { o.TickEvery = time.Microsecond },
		"failures": func(o *Options) { o.MaxFailures = 100_000 },
	} {
		t.Run(name, func(t *testing.T) {
			o := options("http://127.0.0.1:1")
			change(&o)
			_, err := Run(t.Context(), o)
			require.ErrorIs(t, err, ErrOptions)
		})
	}
}
