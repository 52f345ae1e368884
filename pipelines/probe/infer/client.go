// Package infer sends one inference request over HTTP and judges the answer: bounded in time and size, with a reason in
// one line for everything that can go wrong. Smoke, warm-up, latency and watch send their requests through it, so that
// they agree on what a failed request is.
//
// # Repeated requests
//
// Go's net/http repeats a request by itself when a kept connection turns out to be gone. A client that hides such repeats
// hides what users of other clients see as errors, and one that never repeats reports what no client shows its user. The rule here is the
// one of RFC 9112, section 9.3.1, read strictly: a request of which no byte was written is sent again on a new connection
// and counted (Answer.Redialled); a request that was written once and got no answer has failed, whatever its method, also
// where net/http has already repeated it.
package infer

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/greenlight-ci/greenlight/pipelines/probe/jsonpath"
)

// Request is one request to a service.
type Request struct {
	// Method is the HTTP method. Default POST with a body, GET without.
	Method string `json:"method,omitempty"`
	// Path is appended to the service's URL. Default /v1/infer.
	Path string `json:"path,omitempty"`
	// Headers are added to the request.
	Headers map[string]string `json:"headers,omitempty"`
	// Body is sent as application/json.
	Body json.RawMessage `json:"body,omitempty"`
}

const (
	// DefaultPath is where services answer inference requests.
	DefaultPath = "/v1/infer"
	// DefaultTimeout is how long one request may take.
	DefaultTimeout = 10 * time.Second
	// DefaultMaxBody is the largest body in bytes that is read.
	DefaultMaxBody = 4 << 20
	// idleTimeout is below the 5 s after which common servers (uvicorn, Node) close an idle connection: a client that keeps
	// one for longer sends requests into the closing, and the failure is its own.
	idleTimeout = 4 * time.Second
)

// Options say how a Client connects.
type Options struct {
	// Timeout is for one request, from the dial to the last byte of the answer. Default DefaultTimeout.
	Timeout time.Duration
	// MaxBody is the largest answer in bytes. Default DefaultMaxBody.
	MaxBody int64
	// Fresh opens a new connection for every request and closes it after the answer. Otherwise connections are kept.
	Fresh bool
	// Connections is the largest number of connections at a time, 0 for no limit.
	Connections int
}

// Client sends requests to one service. It is safe for concurrent use; Close it in the end.
type Client struct {
	base      *url.URL
	options   Options
	transport *http.Transport
}

// NewClient makes a client of the service at baseURL, an absolute http or https URL.
func NewClient(baseURL string, options Options) (*Client, error) {
	base, err := ParseURL(baseURL)
	if err != nil {
		return nil, err
	}
	if options.Timeout <= 0 {
		options.Timeout = DefaultTimeout
	}
	if options.MaxBody <= 0 {
		options.MaxBody = DefaultMaxBody
	}
	dialer := &net.Dialer{Timeout: options.Timeout, KeepAlive: 15 * time.Second}
	return &Client{base: base, options: options, transport: &http.Transport{
		// No Proxy: the figures must be the service's own, and in a cluster nothing is reached through one.
		DialContext:            dialer.DialContext,
		DisableKeepAlives:      options.Fresh,
		DisableCompression:     true,
		MaxConnsPerHost:        options.Connections,
		MaxIdleConnsPerHost:    max(options.Connections, 2),
		IdleConnTimeout:        idleTimeout,
		TLSHandshakeTimeout:    options.Timeout,
		ResponseHeaderTimeout:  options.Timeout,
		MaxResponseHeaderBytes: 64 << 10,
	}}, nil
}

// ParseURL checks that text is an absolute http or https URL with a host.
func ParseURL(text string) (*url.URL, error) {
	base, err := url.Parse(text)
	switch {
	case text == "":
		return nil, fmt.Errorf("the service's URL is missing")
	case err != nil:
		return nil, fmt.Errorf("the URL %q cannot be read: %w", text, err)
	case base.Scheme != "http" && base.Scheme != "https", base.Host == "":
		return nil, fmt.Errorf("the URL %q must be http://host or https://host", text)
	}
	return base, nil
}

// Close closes the kept connections.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// Get reads a JSON document by GET, such as /ready. status is the expected one, 0 for any.
func (c *Client) Get(ctx context.Context, path string, status int) (Answer, error) {
	return c.Do(ctx, Request{Method: http.MethodGet, Path: path}, status)
}

// Do sends a request and reads the JSON answer. Any other status than the given one, 0 for any, is a *Failure, as is every
// answer that is not finite, complete JSON. The Answer is filled as far as it was read, also with an error.
func (c *Client) Do(ctx context.Context, request Request, status int) (Answer, error) {
	start := time.Now()
	method := request.Method
	if method == "" {
		method = http.MethodGet
		if len(request.Body) > 0 {
			method = http.MethodPost
		}
	}
	path := request.Path
	if path == "" {
		path = DefaultPath
	}
	reference, err := url.Parse(path)
	if err != nil || reference.IsAbs() || reference.Host != "" {
		return Answer{}, fmt.Errorf("the path %q cannot be used: it must be like /v1/infer", path)
	}
	target := c.base.JoinPath(reference.Path)
	target.RawQuery = reference.RawQuery
	where := method + " " + target.Redacted()

	withTimeout, cancel := context.WithTimeout(ctx, c.options.Timeout)
	defer cancel()
	var wire wireTrace
	var body io.Reader
	if len(request.Body) > 0 {
		body = bytes.NewReader(request.Body)
	}
	httpRequest, err := http.NewRequestWithContext(httptrace.WithClientTrace(withTimeout, wire.hooks()), method, target.String(), body)
	if err != nil {
		return Answer{}, fmt.Errorf("making the request %s: %w", where, err)
	}
	httpRequest.Header.Set("User-Agent", "greenlight-probe")
	httpRequest.Header.Set("Accept", "application/json")
	if body != nil {
		httpRequest.Header.Set("Content-Type", "application/json")
	}
	for name, value := range request.Headers {
		httpRequest.Header.Set(name, value)
	}

	response, err := c.transport.RoundTrip(httpRequest)
	answer := Answer{Elapsed: time.Since(start)}
	connections, writes, reused := wire.counts()
	answer.Reused, answer.Redialled = reused, connections > 1
	if err != nil {
		return answer, transportFailure(ctx, err, where, c.options.Timeout)
	}
	defer response.Body.Close()
	answer.Status = response.StatusCode
	content, err := io.ReadAll(io.LimitReader(response.Body, c.options.MaxBody+1))
	answer.Elapsed = time.Since(start)
	answer.Size = len(content)
	switch {
	case err != nil:
		return answer, transportFailure(ctx, err, where, c.options.Timeout)
	case writes > 1:
		return answer, failure(Closed, "%s: the kept connection was closed after the request was written", where)
	}
	return c.judge(answer, response.Header, content, status, where)
}

func (c *Client) judge(answer Answer, header http.Header, content []byte, status int, where string) (Answer, error) {
	mediaType, _, _ := mime.ParseMediaType(header.Get("Content-Type"))
	looksHTML := mediaType == "text/html" || bytes.HasPrefix(bytes.ToLower(bytes.TrimSpace(content[:min(len(content), 64)])), []byte("<!doctype html")) ||
		bytes.HasPrefix(bytes.ToLower(bytes.TrimSpace(content[:min(len(content), 64)])), []byte("<html"))
	tooLarge := int64(len(content)) > c.options.MaxBody
	if status != 0 && answer.Status != status {
		detail := ""
		switch {
		case looksHTML:
			detail = " with an HTML page"
		case !tooLarge:
			detail = statusDetail(content)
		}
		return answer, failure(BadStatus, "%s: answered %d instead of %d%s", where, answer.Status, status, detail)
	}
	switch {
	case looksHTML:
		return answer, failure(HTML, "%s: answered an HTML page, not JSON: is this the service, or a proxy in front of it?", where)
	case tooLarge:
		return answer, failure(TooLarge, "%s: the answer is larger than %d bytes", where, c.options.MaxBody)
	case mediaType != "application/json" && !strings.HasSuffix(mediaType, "+json"):
		return answer, failure(ContentType, "%s: answered content type %q instead of application/json", where, oneLine(header.Get("Content-Type"), 60))
	}
	document, err := Decode(content)
	if err != nil {
		kind := KindOf(err)
		return answer, &Failure{Kind: kind, Reason: fmt.Sprintf("%s: %v", where, err), Err: err}
	}
	answer.Document = document
	answer.Device, answer.Colour, answer.Version = answer.name("device"), answer.name("colour"), answer.name("version")
	return answer, nil
}

// statusDetail is what a service says about an unexpected status: its error field, or the start of the body.
func statusDetail(content []byte) string {
	var said struct {
		Error  json.RawMessage `json:"error"`
		Reason json.RawMessage `json:"reason"`
	}
	text := string(content)
	if json.Unmarshal(content, &said) == nil {
		for _, field := range []json.RawMessage{said.Error, said.Reason} {
			if len(field) > 0 {
				text = strings.Trim(string(field), `"`)
				break
			}
		}
	}
	if text = oneLine(text, 160); text == "" {
		return ""
	}
	return ": " + text
}

// wireTrace counts what net/http did on the wire for one request. Its hooks run on the transport's goroutines.
type wireTrace struct {
	mu          sync.Mutex
	connections int
	writes      int
	reused      bool
}

func (w *wireTrace) hooks() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.connections++
			w.reused = info.Reused
		},
		WroteRequest: func(info httptrace.WroteRequestInfo) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if info.Err == nil {
				w.writes++
			}
		},
	}
}

func (w *wireTrace) counts() (connections, writes int, reused bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.connections, w.writes, w.reused
}

// OutputsPath is DefaultOutputs, or text where it is given, parsed. "-" turns the check of outputs off (false).
func OutputsPath(text string) (jsonpath.Path, bool, error) {
	switch text {
	case "-":
		return jsonpath.Path{}, false, nil
	case "":
		text = DefaultOutputs
	}
	path, err := jsonpath.Parse(text)
	return path, err == nil, err
}
