package infer

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/greenlight-ci/greenlight/pipelines/probe/jsonpath"
)

const goodAnswer = `{"outputs":[[0.1,0.9]],"classes":[1],"device":"cpu","colour":"blue","version":"v1"}`

func serve(t *testing.T, handler http.HandlerFunc) *httptest.Server {
	t.Helper()
	// The body is read first: a server notices that a client has gone only then.
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		handler(w, r)
	}))
	t.Cleanup(server.Close)
	return server
}

func answerWith(contentType, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		_, _ = io.WriteString(w, body)
	}
}

// hijack answers with raw bytes and closes the connection.
func hijack(raw string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		connection, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		_, _ = io.WriteString(connection, raw)
		_ = connection.Close()
	}
}

func TestDoNamesWhatIsWrong(t *testing.T) {
	for _, c := range []struct {
		name    string
		handler http.HandlerFunc
		kind    Kind
		reason  string
	}{
		{"bare NaN as Python writes it", answerWith("application/json", `{"outputs": [[0.5, NaN]]}`), NotFinite, "$.outputs[0][1] is NaN"},
		{"bare -Infinity", answerWith("application/json", `{"outputs": [[-Infinity]]}`), NotFinite, "$.outputs[0][0] is -Infinity"},
		{"overflow", answerWith("application/json", `{"outputs": [[1e999]]}`), NotFinite, "$.outputs[0][0] is 1e999"},
		{"NaN as protobuf writes it", answerWith("application/json", `{"score": "NaN"}`), NotFinite, "$.score is NaN"},
		{"null among numbers", answerWith("application/json", `{"outputs": [[1, null]]}`), NotFinite, "$.outputs[0][1] is null among numbers"},
		{"NaN outside outputs", answerWith("application/json", `{"outputs": [[1]], "debug": {"loss": nan}}`), NotFinite, "$.debug.loss is NaN"},
		{"HTML with status 200", answerWith("text/html", "<html><body>Please log in</body></html>"), HTML, "HTML page"},
		{"HTML that claims to be JSON", answerWith("application/json", " <!DOCTYPE html><html>"), HTML, "HTML page"},
		{"HTML with status 404", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(404)
			_, _ = io.WriteString(w, "<html>not here</html>")
		}, BadStatus, "answered 404 instead of 200 with an HTML page"},
		{"wrong content type", answerWith("text/plain", goodAnswer), ContentType, `content type "text/plain"`},
		{"no JSON", answerWith("application/json", "certainly not"), NotJSON, "not JSON"},
		{"empty body", answerWith("application/json", ""), NotJSON, "it is empty"},
		{"half a document", answerWith("application/json", `{"outputs": [[1`), NotJSON, "ends in the middle"},
		{"two documents", answerWith("application/json", goodAnswer+goodAnswer), NotJSON, "something follows"},
		{"ten megabytes", answerWith("application/json", `{"outputs":[[1]],"filler":"`+strings.Repeat("x", 10<<20)+`"}`), TooLarge, "larger than"},
		{"endless body", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			for r.Context().Err() == nil {
				if _, err := io.WriteString(w, strings.Repeat(" ", 1<<16)); err != nil {
					return
				}
			}
		}, TooLarge, "larger than"},
		{"error with a reason", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(500)
			_, _ = io.WriteString(w, `{"error": "CUDA error: out of memory\nsecond line"}`)
		}, BadStatus, `answered 500 instead of 200: CUDA error: out of memory\nsecond line`},
		{"hangs", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, TimedOut, "no complete answer within 300ms"},
		{"hangs in the body", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"outputs":`)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}, TimedOut, "no complete answer within 300ms"},
		{"closes", hijack(""), Closed, "closed before the answer was complete"},
		{"closes in the headers", hijack("HTTP/1.1 200 OK\r\nContent-"), NotHTTP, "broke off in its headers"},
		{"closes in the body", hijack("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"), Closed, "closed before"},
		{"no HTTP", hijack("220 mail.example ESMTP\r\n"), NotHTTP, "not HTTP"},
		{"redirect", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) }, BadStatus, "answered 302 instead of 200"},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := serve(t, c.handler)
			timeout := 5 * time.Second
			if c.kind == TimedOut {
				timeout = 300 * time.Millisecond
			}
			client, err := NewClient(server.URL, Options{Timeout: timeout, MaxBody: 1 << 20})
			require.NoError(t, err)
			defer client.Close()
			_, err = client.Do(t.Context(), Request{Body: []byte(`{}`)}, 200)
			require.Error(t, err)
			require.Equal(t, c.kind, KindOf(err), err.Error())
			require.Contains(t, err.Error(), c.reason)
			require.NotContains(t, err.Error(), "\n")
			require.Contains(t, err.Error(), "POST http://127.0.0.1:")
			require.Less(t, len(err.Error()), 400)
		})
	}
}

func TestDoRefusedAndUnresolved(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := listener.Addr().String()
	require.NoError(t, listener.Close())
	client, err := NewClient("http://"+address, Options{})
	require.NoError(t, err)
	_, err = client.Get(t.Context(), "/ready", 200)
	require.Equal(t, Refused, KindOf(err))
	require.Contains(t, err.Error(), "connection refused")

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = client.Get(ctx, "/ready", 200)
	require.Equal(t, Cancelled, KindOf(err))
}

func TestDoReadsAGoodAnswer(t *testing.T) {
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.Method != http.MethodPost || r.URL.Path != "/base/v1/infer" || r.URL.RawQuery != "a=b" || string(body) != `{"inputs":1}` ||
			r.Header.Get("Content-Type") != "application/json" || r.Header.Get("X-Tenant") != "one" {
			w.WriteHeader(http.StatusTeapot)
			return
		}
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		_, _ = io.WriteString(w, goodAnswer)
	})
	client, err := NewClient(server.URL+"/base", Options{Connections: 1})
	require.NoError(t, err)
	defer client.Close()
	request := Request{Path: "/v1/infer?a=b", Body: []byte(`{"inputs":1}`), Headers: map[string]string{"X-Tenant": "one"}}
	for i := range 2 {
		answer, err := client.Do(t.Context(), request, 200)
		require.NoError(t, err)
		require.Equal(t, Answer{
			Status: 200, Document: answer.Document, Size: len(goodAnswer), Device: "cpu", Colour: "blue", Version: "v1",
			Elapsed: answer.Elapsed, Reused: i == 1,
		}, answer)
	}
}

func TestNewClientRefusesBadURLs(t *testing.T) {
	for _, text := range []string{"", "service:80", "ftp://host", "http://", "://", "http://a b"} {
		_, err := NewClient(text, Options{})
		require.Error(t, err, text)
	}
	client, err := NewClient("http://host", Options{})
	require.NoError(t, err)
	_, err = client.Get(t.Context(), "http://elsewhere/", 200)
	require.ErrorContains(t, err, "cannot be used")
}

// rawServer answers each connection's requests by a function of the connection's number, so that tests decide when it closes.
func rawServer(t *testing.T, handle func(number int, connection net.Conn, reader *bufio.Reader)) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { listener.Close() })
	go func() {
		for number := 1; ; number++ {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer connection.Close()
				handle(number, connection, bufio.NewReader(connection))
			}()
		}
	}()
	return "http://" + listener.Addr().String()
}

func readOne(reader *bufio.Reader) bool {
	request, err := http.ReadRequest(reader)
	if err != nil {
		return false
	}
	_, err = io.Copy(io.Discard, request.Body)
	return err == nil
}

func answerOne(connection net.Conn) {
	fmt.Fprintf(connection, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(goodAnswer), goodAnswer)
}

// A request that was written and got no answer is a failure whatever net/http does with it.
func TestNoHiddenRepeats(t *testing.T) {
	for _, request := range []Request{{Method: "GET", Path: "/ready"}, {Body: []byte(`{}`)}} {
		base := rawServer(t, func(number int, connection net.Conn, reader *bufio.Reader) {
			for served := 0; readOne(reader); served++ {
				if number == 1 && served == 1 {
					return // takes the second request and closes
				}
				answerOne(connection)
			}
		})
		client, err := NewClient(base, Options{Connections: 1})
		require.NoError(t, err)
		_, err = client.Do(t.Context(), request, 200)
		require.NoError(t, err)
		_, err = client.Do(t.Context(), request, 200)
		require.Equal(t, Closed, KindOf(err), "%s: %v", request.Method, err)
		_, err = client.Do(t.Context(), request, 200)
		require.NoError(t, err)
		client.Close()
	}
}

// A kept connection that the server closed while it was idle is replaced, as every client does; nothing was sent on it.
func TestIdleCloseIsNoFailure(t *testing.T) {
	base := rawServer(t, func(_ int, connection net.Conn, reader *bufio.Reader) {
		if readOne(reader) {
			answerOne(connection)
		}
	})
	client, err := NewClient(base, Options{Connections: 1})
	require.NoError(t, err)
	defer client.Close()
	for range 5 {
		_, err = client.Do(t.Context(), Request{Body: []byte(`{}`)}, 200)
		require.NoError(t, err)
		time.Sleep(20 * time.Millisecond)
	}
}

func TestFreshConnections(t *testing.T) {
	server := serve(t, answerWith("application/json", goodAnswer))
	client, err := NewClient(server.URL, Options{Fresh: true})
	require.NoError(t, err)
	for range 3 {
		answer, err := client.Do(t.Context(), Request{}, 200)
		require.NoError(t, err)
		require.False(t, answer.Reused)
	}
}

func TestOutputs(t *testing.T) {
	path, check, err := OutputsPath("")
	require.NoError(t, err)
	require.True(t, check)
	for _, c := range []struct {
		name, document string
		numbers        []float64
		reason         string
	}{
		{"good", `{"outputs":[[1,2],[3]]}`, []float64{1, 2, 3}, ""},
		{"one number", `{"outputs":1}`, []float64{1}, ""},
		{"missing", `{"error":"x"}`, nil, `$ has no "outputs"`},
		{"empty", `{"outputs":[[],[]]}`, nil, "$.outputs is empty"},
		{"text", `{"outputs":["cat"]}`, nil, `$.outputs[0] is "cat"`},
		{"null", `{"outputs":null}`, nil, "$.outputs is null"},
		{"no object", `[1]`, nil, "$ is an array"},
	} {
		t.Run(c.name, func(t *testing.T) {
			document, err := Decode([]byte(c.document))
			require.NoError(t, err)
			numbers, err := Outputs(document, path)
			require.Equal(t, c.numbers, numbers)
			if c.reason != "" {
				require.ErrorContains(t, err, c.reason)
				require.Equal(t, NoOutputs, KindOf(err))
			}
		})
	}
	_, check, err = OutputsPath("-")
	require.NoError(t, err)
	require.False(t, check)
	_, _, err = OutputsPath("outputs")
	require.Error(t, err)
}

func TestDecodeLeavesGoodTextAlone(t *testing.T) {
	document, err := Decode([]byte(`{"text":"NaN is \"Infinity\" for -Infinity people","list":[null,null],"n":-1.5e-7}`))
	require.NoError(t, err)
	require.Equal(t, json.Number("-1.5e-7"), document.(map[string]any)["n"])
}

func FuzzDecode(f *testing.F) {
	for _, seed := range []string{goodAnswer, `{"a":NaN}`, `[-Infinity,"x\"NaN"]`, `"\u0000not finite: x"`, `{"a":1e999}`, `nan`, `"`, `[1,null]`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		document, err := Decode(body)
		if err != nil {
			require.NotEmpty(t, KindOf(err))
			require.NotContains(t, err.Error(), "\n")
			return
		}
		require.True(t, json.Valid(body), "only JSON is accepted")
		if numbers, err := Outputs(document, jsonpath.Path{}); err == nil {
			require.NotEmpty(t, numbers)
		}
	})
}
