package warmup

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/greenlight-ci/greenlight/pipelines/probe/infer"
)

// service delays its n-th answer, from 1, and gives it the body.
func service(t *testing.T, delay func(n int64) time.Duration, body func(n int64) string) string {
	t.Helper()
	var count atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		n := count.Add(1)
		select {
		case <-time.After(delay(n)):
		case <-r.Context().Done():
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, body(n))
	}))
	t.Cleanup(server.Close)
	return server.URL
}

func good(int64) string { return `{"outputs":[[1]]}` }

func options(url string) Options {
	return Options{URL: url, Requests: []infer.Request{{Body: json.RawMessage(`{}`)}}, Batch: 10, Connections: 2, ToleranceMillis: 30}
}

func TestWarmsUpUntilStable(t *testing.T) {
	url := service(t, func(n int64) time.Duration {
		if n <= 20 {
			return 80 * time.Millisecond
		}
		return time.Millisecond
	}, good)
	result, err := Run(t.Context(), options(url))
	require.NoError(t, err)
	require.True(t, result.Passed)
	require.True(t, result.Stable, result.Reason)
	require.GreaterOrEqual(t, result.Cold, 20)
	require.Greater(t, result.ColdMaxMillis, 70.0)
	require.Less(t, result.WarmMillis, 60.0)
	require.Len(t, result.Batches, result.Requests/10)
}

func TestUnstable(t *testing.T) {
	slower := func(n int64) time.Duration { return time.Duration(n) * 4 * time.Millisecond }
	o := options(service(t, slower, good))
	o.MaxRequests, o.ToleranceMillis = 40, 1
	result, err := Run(t.Context(), o)
	require.NoError(t, err)
	require.True(t, result.Passed)
	require.False(t, result.Stable)
	require.Equal(t, 40, result.Requests)
	require.Contains(t, result.Reason, "not stable after 40 requests")

	o.URL, o.RequireStable = service(t, slower, good), true
	result, err = Run(t.Context(), o)
	require.ErrorIs(t, err, ErrRejected)
	require.False(t, result.Passed)
}

func TestFailedRequestsReject(t *testing.T) {
	o := options(service(t, func(int64) time.Duration { return 0 }, func(n int64) string {
		if n == 15 {
			return `{"outputs":[[NaN]]}`
		}
		return good(n)
	}))
	result, err := Run(t.Context(), o)
	require.ErrorIs(t, err, ErrRejected)
	require.Contains(t, result.Reason, "$.outputs[0][0] is NaN")

	o.URL = "http://127.0.0.1:1"
	_, err = Run(t.Context(), o)
	require.ErrorIs(t, err, ErrRejected)
	require.ErrorContains(t, err, "connection refused")
}

func TestIsBounded(t *testing.T) {
	hangs := service(t, func(int64) time.Duration { return time.Hour }, good)
	o := options(hangs)
	o.MaxDuration = 300 * time.Millisecond
	start := time.Now()
	_, err := Run(t.Context(), o)
	require.ErrorIs(t, err, ErrRejected)
	require.ErrorContains(t, err, "no answer within 300ms")
	require.Less(t, time.Since(start), 5*time.Second)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = Run(ctx, o)
	require.ErrorIs(t, err, context.Canceled)
	require.NotErrorIs(t, err, ErrRejected)
}

func TestBadOptions(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Options)
		reason string
	}{
		"no URL":      {func(o *Options) { o.URL = "" }, "URL is missing"},
		"no request":  {func(o *Options) { o.Requests = nil }, "no request to send"},
		"few":         {func(o *Options) { o.MaxRequests = 20 }, "less than 3 batches of 10"},
		"outputs":     {func(o *Options) { o.Outputs = "x" }, "must start with $"},
		"connections": {func(o *Options) { o.Connections = -1 }, "connections must be"},
		"one batch":   {func(o *Options) { o.StableBatches = 1 }, "stableBatches at least 2"},
	} {
		t.Run(name, func(t *testing.T) {
			o := options("http://127.0.0.1:1")
			c.change(&o)
			_, err := Run(t.Context(), o)
			require.ErrorIs(t, err, ErrOptions)
			require.ErrorContains(t, err, c.reason)
		})
	}
}
