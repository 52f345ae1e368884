package image

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// retriedStatus are the answers of a registry that is busy or half up: the same request may succeed a moment later.
var retriedStatus = []int{
	http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
	http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout,
}

// longestPause limits a Retry-After that a registry asks for.
const longestPause = 30 * time.Second

// retryingTransport repeats requests that failed for a reason that passes. Unlike go-containerregistry's own it honours
// Retry-After and never repeats a request whose body it cannot read again.
type retryingTransport struct {
	inner    http.RoundTripper
	attempts int
	pause    time.Duration
}

// RoundTrip sends the request up to attempts times.
func (t *retryingTransport) RoundTrip(request *http.Request) (*http.Response, error) {
	for attempt := 1; ; attempt++ {
		response, err := t.inner.RoundTrip(request)
		if attempt >= t.attempts || !worthRepeating(response, err) {
			return response, err
		}
		repeated, ok := again(request)
		if !ok {
			return response, err
		}
		pause := t.backoff(attempt, response)
		if response != nil {
			// A drained body lets the connection be used again.
			_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, 1<<20))
			_ = response.Body.Close()
		}
		if err := sleep(request.Context(), pause); err != nil {
			return nil, err
		}
		request = repeated
	}
}

func worthRepeating(response *http.Response, err error) bool {
	if err == nil {
		return slices.Contains(retriedStatus, response.StatusCode)
	}
	var timeout net.Error
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EPIPE) ||
		errors.As(err, &timeout) && timeout.Timeout() && !errors.Is(err, context.DeadlineExceeded)
}

// again is the request with an unread body; false if the body is a stream that is gone.
func again(request *http.Request) (*http.Request, bool) {
	repeated := request.Clone(request.Context())
	if request.Body == nil || request.Body == http.NoBody {
		return repeated, true
	}
	if request.GetBody == nil {
		return nil, false
	}
	body, err := request.GetBody()
	if err != nil {
		return nil, false
	}
	repeated.Body = body
	return repeated, true
}

// backoff doubles with every attempt and is jittered, so that many releases do not come back at once.
func (t *retryingTransport) backoff(attempt int, response *http.Response) time.Duration {
	if response != nil {
		if seconds, err := strconv.Atoi(response.Header.Get("Retry-After")); err == nil && seconds >= 0 {
			return min(time.Duration(seconds)*time.Second, longestPause)
		}
	}
	pause := min(t.pause<<(attempt-1), longestPause)
	return pause/2 + rand.N(pause/2+1)
}

func sleep(ctx context.Context, pause time.Duration) error {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
