package smoke

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	goodReady  = `{"status":"ready","colour":"green","version":"v2","device":"cpu","deviceName":null,"torch":"2.6.0+debian","cuda":null,"cudnn":null,"driver":null,"computeCapability":null,"gpuMemoryUsedBytes":null,"gpuMemoryTotalBytes":null,"weightsSha256":"ABCD","uid":10001}`
	gpuReady   = `{"status":"ready","colour":"green","version":"v2","device":"cuda","deviceName":"NVIDIA H200","torch":"2.7.0+cu126","cuda":"12.6","cudnn":90501,"driver":"550.54.15","computeCapability":"9.0","gpuMemoryUsedBytes":1000,"gpuMemoryTotalBytes":9000,"weightsSha256":"abcd","uid":10001}`
	goodAnswer = `{"outputs":[[0.02,0.98]],"classes":[1],"device":"cpu","colour":"green","version":"v2"}`
)

func goldenCase() Case {
	return Case{Name: "one", Request: request(), Expect: Expectation{
		Values: []Value{{Path: "$.outputs[0][1]", Equals: json.RawMessage(`0.98`), Absolute: 1e-3}, {Path: "$.classes[0]", Equals: json.RawMessage(`1`)}},
		Shape:  []Shape{{Path: "$.outputs", Dims: []int{1, 2}}},
	}}
}

// service answers /ready and everything else with fixed bodies.
func service(t *testing.T, ready, answer string) string {
	t.Helper()
	return serveWith(t, ready, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, answer)
	})
}

func serveWith(t *testing.T, ready string, infer http.HandlerFunc) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if r.URL.Path == "/ready" {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, ready)
			return
		}
		infer(w, r)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

func TestRun(t *testing.T) {
	for _, c := range []struct {
		name          string
		ready, answer string
		change        func(*Options)
		failed        string // the reason, "" for a pass
		notChecked    string
	}{
		{name: "good", notChecked: "torch: no pin is configured"},
		{name: "good with pins", change: func(o *Options) {
			o.Expect = Pins{Version: "v2", Colour: "green", Torch: "2.6", WeightsSHA256: "abcd"}
		}, notChecked: "the device is cpu"},
		{name: "NaN", answer: `{"outputs":[[NaN,0.98]],"classes":[1]}`, failed: "case one: POST http://127.0.0.1:"},
		{name: "wrong value", answer: strings.Replace(goodAnswer, "0.98", "0.5", 1), failed: "case one: $.outputs[0][1] is 0.5 instead of 0.98 (off by 0.48, allowed 0.001)"},
		{name: "wrong class", answer: strings.Replace(goodAnswer, "[1]", "[7]", 1), failed: "case one: $.classes[0] is 7 instead of 1"},
		{name: "wrong shape", answer: strings.Replace(goodAnswer, "0.02,", "0.02,0.98,", 1), failed: "case one: $.outputs[0] has 3 elements instead of 2"},
		{name: "no outputs", answer: `{"error":"oops"}`, failed: `$ has no "outputs"`},
		{name: "cpu for cuda", change: func(o *Options) { o.Device = CUDA }, failed: "device: runs on cpu instead of cuda: no GPU reached the process"},
		{name: "ready says cuda, the answer cpu", ready: gpuReady, change: func(o *Options) { o.Device = CUDA }, failed: "case one: computed on cpu instead of cuda"},
		{
			name: "answer without device on cuda", ready: gpuReady, answer: strings.Replace(goodAnswer, `"device":"cpu",`, "", 1), change: func(o *Options) { o.Device = CUDA },
			failed: "does not say that it was computed on cuda",
		},
		{name: "answer without device on cpu", answer: strings.Replace(goodAnswer, `"device":"cpu",`, "", 1), notChecked: "device of each answer"},
		{name: "other version", change: func(o *Options) { o.Expect.Version = "v3" }, failed: "version: v2 instead of v3"},
		{
			name: "other colour answers", answer: strings.Replace(goodAnswer, "green", "blue", 1), change: func(o *Options) { o.Expect.Colour = "green" },
			failed: "case one: answered by blue instead of the candidate's colour green",
		},
		{name: "other torch", change: func(o *Options) { o.Expect.Torch = "2.7" }, failed: "torch: 2.6.0+debian instead of 2.7"},
		{name: "other weights", change: func(o *Options) { o.Expect.WeightsSHA256 = "ef01" }, failed: "weights checksum: ABCD instead of ef01"},
		{name: "root", ready: strings.Replace(goodReady, "10001", "0", 1), failed: "user: runs as uid 0 (root)"},
		{name: "root allowed", ready: strings.Replace(goodReady, "10001", "0", 1), change: func(o *Options) { o.Expect.AllowRoot = true }, notChecked: "root is allowed"},
		{name: "ready without uid", ready: strings.Replace(goodReady, "10001", "null", 1), notChecked: "does not say the uid"},
		{
			name: "pinned weights not told", ready: strings.Replace(goodReady, `"ABCD"`, "null", 1), change: func(o *Options) { o.Expect.WeightsSHA256 = "abcd" },
			failed: "weights checksum: /ready does not say it; abcd is pinned",
		},
		{name: "strange ready", ready: `{"status":7}`, failed: "ready: /ready answered something else than documented"},
		{name: "ready is HTML", ready: `<html>`, failed: "ready: GET http://127.0.0.1:"},
		{name: "several", answer: `{"outputs":[[1]]}`, change: func(o *Options) { o.Expect.Version = "v3" }, failed: "(and 1 more of 5 checks failed)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.ready == "" {
				c.ready = goodReady
			}
			if c.answer == "" {
				c.answer = goodAnswer
			}
			o := Options{URL: service(t, c.ready, c.answer), Device: CPU, Cases: []Case{goldenCase()}, Timeout: 5 * time.Second}
			if c.change != nil {
				c.change(&o)
			}
			result, err := Run(t.Context(), o)
			if c.failed == "" {
				require.NoError(t, err)
				require.True(t, result.Passed)
			} else {
				require.ErrorIs(t, err, ErrRejected)
				require.False(t, result.Passed)
				require.Contains(t, result.Reason, c.failed)
				require.NotContains(t, result.Reason, "\n")
			}
			require.Contains(t, strings.Join(result.NotChecked, "; "), c.notChecked)
		})
	}
}

func TestRunOnAGPU(t *testing.T) {
	answer := strings.Replace(goodAnswer, `"cpu"`, `"cuda"`, 1)
	for _, c := range []struct {
		name   string
		pins   Pins
		failed string
	}{
		{"all pins", Pins{Torch: "2.7.0", CUDA: "12.6", CUDNN: "9.5", Driver: "550", ComputeCapability: "9.0", MaxGPUMemoryBytes: 1000}, ""},
		{"cudnn", Pins{CUDNN: "9.1"}, "cudnn: 9.5.1 instead of 9.1"},
		{"no half numbers", Pins{CUDA: "12"}, ""},
		{"cuda", Pins{CUDA: "11.8"}, "cuda: 12.6 instead of 11.8"},
		{"prefix of a number", Pins{Driver: "55"}, "driver: 550.54.15 instead of 55"},
		{"memory", Pins{MaxGPUMemoryBytes: 999}, "GPU memory: 1000 bytes in use, the budget is 999"},
	} {
		t.Run(c.name, func(t *testing.T) {
			result, err := Run(t.Context(), Options{URL: service(t, gpuReady, answer), Device: CUDA, Cases: []Case{goldenCase()}, Expect: c.pins})
			if c.failed == "" {
				require.NoError(t, err)
				require.True(t, result.Passed)
				return
			}
			require.ErrorIs(t, err, ErrRejected)
			require.Contains(t, result.Reason, c.failed)
		})
	}
}

func TestMisbehavingServices(t *testing.T) {
	for _, c := range []struct {
		name    string
		handler http.HandlerFunc
		reason  string
	}{
		{"hangs", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "no complete answer within 300ms"},
		{"closes", func(w http.ResponseWriter, _ *http.Request) {
			connection, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				connection.Close()
			}
		}, "closed before the answer was complete"},
		{"HTML", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "<!DOCTYPE html><p>Bad Gateway")
		}, "HTML page"},
		{"ten megabytes", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"outputs":[[1]],"x":"`+strings.Repeat("x", 10<<20)+`"}`)
		}, "larger than 4194304 bytes"},
		{"wrong content type", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/octet-stream")
			_, _ = io.WriteString(w, goodAnswer)
		}, "application/octet-stream"},
		{"500", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, `{"error":"no kernel image"}`, 500) }, "answered 500 instead of 200: no kernel image"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := Options{URL: serveWith(t, goodReady, c.handler), Device: CPU, Cases: []Case{goldenCase()}, Timeout: 300 * time.Millisecond}
			if c.name == "ten megabytes" {
				o.Timeout = 0
			}
			result, err := Run(t.Context(), o)
			require.ErrorIs(t, err, ErrRejected)
			require.Contains(t, result.Reason, c.reason)
		})
	}
}

func TestReadyIsWaitedFor(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := listener.Addr().String()
	require.NoError(t, listener.Close())
	o := Options{URL: "http://" + address, Device: CPU, Cases: []Case{goldenCase()}, ReadyTimeout: 400 * time.Millisecond}
	result, err := Run(t.Context(), o)
	require.ErrorIs(t, err, ErrRejected)
	require.Contains(t, result.Reason, "ready: GET http://"+address+"/ready: connection refused")
	require.Contains(t, result.Reason, "(for 400ms)")

	calls := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch calls++; {
		case calls == 1:
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, `{"reason":"warming up"}`)
		case r.URL.Path == "/ready":
			_, _ = io.WriteString(w, goodReady)
		default:
			_, _ = io.WriteString(w, goodAnswer)
		}
	}))
	defer server.Close()
	o.URL, o.ReadyTimeout = server.URL, 5*time.Second
	_, err = Run(t.Context(), o)
	require.NoError(t, err)
}

func TestWithoutReady(t *testing.T) {
	result, err := Run(t.Context(), Options{URL: service(t, "", goodAnswer), Device: CPU, ReadyPath: "-", Cases: []Case{goldenCase()}})
	require.NoError(t, err)
	require.Contains(t, strings.Join(result.NotChecked, "; "), "everything that /ready says")
	require.Nil(t, result.Ready)
}

func TestAgreement(t *testing.T) {
	other := `{"outputs":[[0.9,0.1]],"classes":[0]}`
	near := `{"outputs":[[0.025,0.975]],"classes":[1]}`
	noClasses := `{"outputs":[[0.3,0.7]]}`
	for _, c := range []struct {
		name       string
		live       string
		agreement  Agreement
		failed     string
		notChecked string
		want       AgreementResult
	}{
		{name: "the same", live: goodAnswer, want: AgreementResult{Cases: 1, Classes: 1, Values: 1}},
		{name: "near", live: near, agreement: Agreement{MinValues: 1}, want: AgreementResult{Cases: 1, Classes: 1, Values: 1, MaxDifference: 0.005}},
		{name: "too far", live: near, agreement: Agreement{MinValues: 1, Absolute: 1e-4}, failed: "value agreement: 0 of 2 output numbers", want: AgreementResult{Cases: 1, Classes: 1, MaxDifference: 0.005}},
		{name: "other class", live: other, failed: "class agreement: 0 of 1 classes equal live's (0.0 %, at least 90.0 % wanted)", want: AgreementResult{Cases: 1, MaxDifference: 0.88}},
		{name: "other class, only reported", live: other, agreement: Agreement{MinClasses: -1}, want: AgreementResult{Cases: 1, MaxDifference: 0.88}},
		{name: "classes from outputs", live: noClasses, want: AgreementResult{Cases: 1, Classes: 1, MaxDifference: 0.28}},
		{name: "other number of outputs", live: `{"outputs":[[1]]}`, failed: "agreement: case one: 2 output numbers, live has 1", want: AgreementResult{Cases: 1}},
		{name: "live is broken", live: `{"outputs":[[NaN]]}`, failed: "agreement: live answered none of 1 golden requests", want: AgreementResult{Skipped: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			result, err := Run(t.Context(), Options{URL: service(t, goodReady, goodAnswer), LiveURL: service(t, "", c.live), Device: CPU, Cases: []Case{goldenCase()}, Agreement: c.agreement})
			if c.failed == "" {
				require.NoError(t, err)
			} else {
				require.ErrorIs(t, err, ErrRejected)
				require.Contains(t, result.Reason, c.failed)
			}
			require.InDelta(t, c.want.MaxDifference, result.Agreement.MaxDifference, 1e-9)
			c.want.MaxDifference = result.Agreement.MaxDifference
			require.Equal(t, c.want, *result.Agreement)
		})
	}
}

func TestBadOptions(t *testing.T) {
	empty := t.TempDir()
	broken := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(broken, "a.json"), []byte(`{"request":{},"expect":{"valuse":[]}}`), 0o600))
	for name, c := range map[string]struct {
		options Options
		reason  string
	}{
		"no device":     {Options{URL: "http://x", Cases: []Case{goldenCase()}}, `device must be "cpu" or "cuda"`},
		"no case":       {Options{URL: "http://x", Device: CPU}, "an empty set would let any service pass"},
		"empty dir":     {Options{URL: "http://x", Device: CPU, CasesDir: empty}, "has no golden case"},
		"missing dir":   {Options{URL: "http://x", Device: CPU, CasesDir: empty + "/none"}, "no such file"},
		"broken case":   {Options{URL: "http://x", Device: CPU, CasesDir: broken}, `a.json: not a case: json: unknown field "valuse"`},
		"bad URL":       {Options{URL: "x:80", Device: CPU, Cases: []Case{goldenCase()}}, "must be http://host"},
		"pointless":     {Options{URL: "http://x", Device: CPU, Cases: []Case{{Name: "n"}}}, "any answer would pass"},
		"bad outputs":   {Options{URL: "http://x", Device: CPU, Cases: []Case{goldenCase()}, Outputs: "x"}, "outputs: "},
		"bad agreement": {Options{URL: "http://x", Device: CPU, Cases: []Case{goldenCase()}, Agreement: Agreement{MinClasses: 90}}, "shares between 0 and 1"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Run(t.Context(), c.options)
			require.ErrorIs(t, err, ErrOptions)
			require.NotErrorIs(t, err, ErrRejected)
			require.ErrorContains(t, err, c.reason)
		})
	}
}

func TestReadCases(t *testing.T) {
	dir := t.TempDir()
	for i, name := range []string{"b.json", "a.json", "notes.txt", ".hidden.json"} {
		content := fmt.Sprintf(`{"request":{"body":%d},"expect":{"values":[{"path":"$.x","minimum":0}]}}`, i)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
	}
	cases, err := ReadCases(dir)
	require.NoError(t, err)
	require.Len(t, cases, 2)
	require.Equal(t, "a", cases[0].Name)

	require.NoError(t, os.WriteFile(filepath.Join(dir, "c.json"), []byte(strings.Repeat(" ", MaxCaseBytes+1)), 0o600))
	_, err = ReadCases(dir)
	require.ErrorContains(t, err, "c.json: 1048577 bytes, more than 1048576")
}

func TestAHangingServiceIsGivenUp(t *testing.T) {
	url := serveWith(t, goodReady, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	cases := make([]Case, 50)
	for i := range cases {
		cases[i] = goldenCase()
	}
	result, err := Run(t.Context(), Options{URL: url, Device: CPU, Cases: cases, Timeout: 50 * time.Millisecond})
	require.ErrorIs(t, err, ErrRejected)
	require.Equal(t, 3, result.Cases)
	require.Contains(t, result.NotChecked, "47 golden cases: the service left 3 in a row without an answer")
}
