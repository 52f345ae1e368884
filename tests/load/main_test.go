package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/greenlight-ci/greenlight/pipelines/probe/watch"
)

func TestLoad(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body struct{ Inputs [][]float64 }
		err := json.NewDecoder(r.Body).Decode(&body)
		w.Header().Set("Content-Type", "application/json")
		if err != nil || len(body.Inputs) != 1 || len(body.Inputs[0]) != 64 {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		_, _ = io.WriteString(w, `{"outputs":[[1]],"version":"v1","colour":"blue"}`)
	}))
	defer server.Close()
	dir := t.TempDir()
	out, until := filepath.Join(dir, "load.json"), filepath.Join(dir, "enough")
	time.AfterFunc(500*time.Millisecond, func() { _ = os.WriteFile(until, nil, 0o600) })
	var stdout, stderr bytes.Buffer
	failed, err := run(t.Context(), []string{"--url", server.URL, "--until-file", until, "--out", out}, &stdout, &stderr)
	require.NoError(t, err)
	require.Zero(t, failed, stderr.String())
	content, err := os.ReadFile(out)
	require.NoError(t, err)
	var result watch.Result
	require.NoError(t, json.Unmarshal(content, &result))
	require.Positive(t, result.Requests)
	require.Equal(t, result.Requests, result.Versions["v1"])
	require.Contains(t, stdout.String(), "v1 (blue)")
	require.Contains(t, stderr.String(), "first answer by v1 (blue) on a kept connection")

	server.Close()
	stderr.Reset()
	failed, err = run(t.Context(), []string{"--url", server.URL, "--requests", "10"}, &stdout, &stderr)
	require.NoError(t, err)
	require.Equal(t, 10, failed)
	require.Contains(t, stderr.String(), "connection refused")
}

func TestBadCommandLines(t *testing.T) {
	broken := filepath.Join(t.TempDir(), "body.json")
	require.NoError(t, os.WriteFile(broken, []byte("{"), 0o600))
	for _, args := range [][]string{{}, {"--url", "x"}, {"--url", "http://x", "more"}, {"--url", "http://x", "--body", broken}, {"--url", "http://x", "--body", broken + "2"}, {"--rate", "fast"}} {
		_, err := run(t.Context(), args, io.Discard, io.Discard)
		require.Error(t, err, args)
	}
}
