package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/greenlight-ci/greenlight/pipelines/latency"
	"github.com/greenlight-ci/greenlight/pipelines/probe/protocol"
	"github.com/greenlight-ci/greenlight/pipelines/probe/watch"
	"github.com/greenlight-ci/greenlight/pipelines/smoke"
	"github.com/greenlight-ci/greenlight/pipelines/warmup"
)

func service(t *testing.T, answer string) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Path == "/ready" {
			_, _ = io.WriteString(w, `{"status":"ready","device":"cpu","version":"v1","uid":5}`)
			return
		}
		_, _ = io.WriteString(w, answer)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

func runWith(t *testing.T, ctx context.Context, subcommand, options string) (stdout, stderr string, err error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "options.json")
	require.NoError(t, os.WriteFile(file, []byte(options), 0o600))
	var out, log bytes.Buffer
	err = run(ctx, []string{subcommand, "--options", file}, &out, &log)
	return out.String(), log.String(), err
}

func result(t *testing.T, stdout string, into any) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(stdout), "\n")
	encoded, ok := protocol.Cut([]byte(lines[len(lines)-1]), protocol.ResultPrefix)
	require.True(t, ok, stdout)
	require.NoError(t, json.Unmarshal(encoded, into))
}

func TestSubcommands(t *testing.T) {
	url := service(t, `{"outputs":[[1]],"device":"cpu","version":"v1"}`)
	request := `"requests":[{"body":{"inputs":[[0]]}}]`

	stdout, stderr, err := runWith(t, t.Context(), "smoke", `{"url":"`+url+`","device":"cpu","cases":[{"expect":{"shape":[{"path":"$.outputs","dims":[1,1]}]}}]}`)
	require.NoError(t, err)
	var smoked smoke.Result
	result(t, stdout, &smoked)
	require.True(t, smoked.Passed)
	require.Contains(t, stderr, "smoke: ok case case-1")

	stdout, _, err = runWith(t, t.Context(), "warmup", `{"url":"`+url+`",`+request+`,"batch":5,"toleranceMillis":1000}`)
	require.NoError(t, err)
	var warmed warmup.Result
	result(t, stdout, &warmed)
	require.True(t, warmed.Stable)

	stdout, _, err = runWith(t, t.Context(), "latency", `{"candidateUrl":"`+url+`",`+request+`,"mode":"fixed","maxRequests":50,"rate":500,"limits":[{"quantile":0.5,"maxMillis":5000}]}`)
	require.NoError(t, err)
	var measured latency.Result
	result(t, stdout, &measured)
	require.True(t, measured.Passed)

	ctx, stop := context.WithCancel(t.Context())
	time.AfterFunc(300*time.Millisecond, stop)
	stdout, _, err = runWith(t, ctx, "watch", `{"url":"`+url+`","rate":100}`)
	require.NoError(t, err, "being stopped is the ordinary end")
	var watched watch.Result
	result(t, stdout, &watched)
	require.Positive(t, watched.Requests)
	require.Zero(t, watched.Failed)
	require.Contains(t, stdout, protocol.EventPrefix+`{"type":"started"`)
}

// A gate's no is a result, not an error.
func TestRejectionIsAResult(t *testing.T) {
	url := service(t, `{"outputs":[[NaN]]}`)
	stdout, _, err := runWith(t, t.Context(), "smoke", `{"url":"`+url+`","device":"cpu","cases":[{"expect":{"shape":[{"path":"$.outputs","dims":[1,1]}]}}]}`)
	require.NoError(t, err)
	var smoked smoke.Result
	result(t, stdout, &smoked)
	require.False(t, smoked.Passed)
	require.Contains(t, smoked.Reason, "$.outputs[0][0] is NaN")
}

func TestUsageErrors(t *testing.T) {
	for _, c := range []struct {
		name, subcommand, options, reason string
		is                                error
	}{
		{"unknown subcommand", "bake", "{}", `unknown subcommand "bake"`, errUsage},
		{"unknown key", "smoke", `{"ulr":"x"}`, `unknown field "ulr"`, errUsage},
		{"no JSON", "latency", `hello`, "invalid character", errUsage},
		{"bad options", "smoke", `{}`, "device must be", smoke.ErrOptions},
		{"bad watch", "watch", `{}`, "URL is missing", watch.ErrOptions},
	} {
		t.Run(c.name, func(t *testing.T) {
			stdout, _, err := runWith(t, t.Context(), c.subcommand, c.options)
			require.ErrorIs(t, err, c.is)
			require.ErrorContains(t, err, c.reason)
			require.Empty(t, stdout)
		})
	}
	require.ErrorIs(t, run(t.Context(), nil, io.Discard, io.Discard), errUsage)
	require.ErrorIs(t, run(t.Context(), []string{"smoke", "extra"}, io.Discard, io.Discard), errUsage)
	require.ErrorContains(t, run(t.Context(), []string{"smoke", "--options", "/nonexistent"}, io.Discard, io.Discard), "/nonexistent")
	require.NoError(t, run(t.Context(), []string{"--help"}, io.Discard, io.Discard))
}
