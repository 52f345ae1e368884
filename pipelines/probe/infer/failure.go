package infer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"
)

// Kind says in one word why a request failed. Kinds are stable: reports count by them.
type Kind string

// The kinds of failure.
const (
	Refused      Kind = "refused"       // nothing listens, or the Service has no endpoint
	Unreachable  Kind = "unreachable"   // no route, or the name does not resolve
	TimedOut     Kind = "timeout"       // no complete answer within the timeout
	Closed       Kind = "closed"        // the connection ended before the answer was complete
	NotHTTP      Kind = "not-http"      // something answered, but not HTTP
	BadStatus    Kind = "status"        // another status than the expected one
	HTML         Kind = "html"          // an HTML page: a proxy's or a login page, not the service
	ContentType  Kind = "content-type"  // another content type than JSON
	TooLarge     Kind = "too-large"     // more bytes than the limit
	NotJSON      Kind = "not-json"      // the body is not JSON
	NotFinite    Kind = "not-finite"    // NaN or an infinity in the answer
	NoOutputs    Kind = "no-outputs"    // valid JSON without usable outputs
	NotSent      Kind = "not-sent"      // the client had too many requests in flight to send it
	WrongVersion Kind = "wrong-version" // the answer came from another version than the expected one
	Cancelled    Kind = "cancelled"     // the caller gave up
)

// Failure is why one request got no usable answer. Its text is one line for people.
type Failure struct {
	Kind   Kind
	Reason string
	Err    error
}

// Error is the reason.
func (f *Failure) Error() string { return f.Reason }

// Unwrap is the transport's error, where there was one.
func (f *Failure) Unwrap() error { return f.Err }

func failure(kind Kind, format string, args ...any) *Failure {
	return &Failure{Kind: kind, Reason: fmt.Sprintf(format, args...)}
}

// KindOf is the kind of a failed request's error, or "" when err is no *Failure.
func KindOf(err error) Kind {
	var f *Failure
	if errors.As(err, &f) {
		return f.Kind
	}
	return ""
}

// transportFailure turns what net/http says into one line. where is "POST http://host/path".
func transportFailure(ctx context.Context, err error, where string, timeout time.Duration) *Failure {
	var urlErr *url.Error
	if errors.As(err, &urlErr) {
		err = urlErr.Err // its prefix repeats the method and the address
	}
	var netErr net.Error
	var dnsErr *net.DNSError
	result := &Failure{Err: err}
	switch {
	case ctx.Err() != nil: // the caller's context, not the request's own timeout
		result.Kind, result.Reason = Cancelled, where+": cancelled"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &netErr) && netErr.Timeout():
		result.Kind, result.Reason = TimedOut, fmt.Sprintf("%s: no complete answer within %s", where, timeout)
	case errors.As(err, &dnsErr):
		result.Kind, result.Reason = Unreachable, fmt.Sprintf("%s: the name %q does not resolve", where, dnsErr.Name)
	case errors.Is(err, syscall.ECONNREFUSED):
		result.Kind, result.Reason = Refused, where+": connection refused: nothing listens there, or the Service has no ready pod"
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		result.Kind, result.Reason = Unreachable, where+": no route to the host"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE),
		errors.Is(err, net.ErrClosed), errors.Is(err, http.ErrServerClosed), strings.Contains(err.Error(), "server closed idle connection"):
		result.Kind, result.Reason = Closed, where+": the connection was closed before the answer was complete"
	case strings.Contains(err.Error(), "malformed"):
		result.Kind, result.Reason = NotHTTP, where+": the answer is not HTTP, or broke off in its headers"
	default:
		result.Kind, result.Reason = Closed, where+": "+oneLine(err.Error(), 200)
	}
	return result
}

// oneLine shortens text to one printable line of at most limit bytes.
func oneLine(text string, limit int) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\ufffd' {
			return ' '
		}
		return r
	}, text)
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > limit {
		return strings.ToValidUTF8(text[:limit], "") + "…"
	}
	return text
}
