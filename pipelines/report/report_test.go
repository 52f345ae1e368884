package report

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func example() *Report {
	return &Report{
		ID: "20261122-000000-0123abcd", Service: "digits", Version: "v1.4.0-3f2a1c9", Image: "r.example.com/digits@sha256:0", Digest: "sha256:0",
		Status: Rejected, Reason: "p99 | <script>alert(1)</script>\nsecond line `x`",
		Stages:  []Stage{{Name: "smoke", Status: StageNo, StartedAt: time.Date(2026, 11, 22, 1, 2, 3, 0, time.UTC), Seconds: 2.5, Detail: "a | b <i>"}},
		Latency: &Latency{Candidate: Percentiles{P50: 1, P95: 2, P99: 3}, Samples: 740, Decision: "fail"},
		Scan:    &Scan{Critical: 1},
		Live:    Live{Colour: "blue", Version: "v1.3.0-0123abc", Image: "r.example.com/digits@sha256:1"},
	}
}

func TestWriteAndRead(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "out")
	require.NoError(t, example().Write(dir))
	read, err := Read(filepath.Join(dir, "report.json"))
	require.NoError(t, err)
	require.Equal(t, example(), read)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 3, "no temporary file is left")
}

// The keys are a contract with whoever reads report.json.
func TestKeys(t *testing.T) {
	data, err := json.Marshal(example())
	require.NoError(t, err)
	var raw map[string]any
	require.NoError(t, json.Unmarshal(data, &raw))
	for _, key := range []string{"id", "service", "version", "image", "digest", "status", "reason", "stages", "switch", "latency", "scan", "gpuSecondsDoubled"} {
		require.Contains(t, raw, key)
	}
	stage := raw["stages"].([]any)[0].(map[string]any)
	require.Equal(t, "2026-11-22T01:02:03Z", stage["startedAt"])
	require.Nil(t, raw["switch"], "there was none")
	require.InDelta(t, 3.0, raw["latency"].(map[string]any)["candidate"].(map[string]any)["p99"], 1e-12)
}

func TestWhatTheCandidateSaysStaysText(t *testing.T) {
	markdown, err := example().Markdown()
	require.NoError(t, err)
	require.NotContains(t, string(markdown), "<script>")
	require.Contains(t, string(markdown), `a \| b &lt;i&gt;`, "a pipe would end the cell")
	require.Contains(t, string(markdown), `&lt;/script&gt; second line 'x'**`, "a line end would end the table")
	html, err := example().HTML()
	require.NoError(t, err)
	require.NotContains(t, string(html), "<script>")
	require.Contains(t, string(html), "&lt;script&gt;")
}

func TestAReleaseThatEndedEarlyCanBeShown(t *testing.T) {
	r := &Report{Service: "digits", Status: Failed, Reason: "no kubeconfig"}
	markdown, err := r.Markdown()
	require.NoError(t, err)
	require.Contains(t, string(markdown), "Nothing is live.")
	_, err = r.HTML()
	require.NoError(t, err)
}

func TestReadNamesWhatIsWrong(t *testing.T) {
	path := filepath.Join(t.TempDir(), "report.json")
	_, err := Read(path)
	require.ErrorContains(t, err, "report.json")
	require.NoError(t, os.WriteFile(path, []byte("{"), 0o600))
	_, err = Read(path)
	require.ErrorContains(t, err, "report.json")
}
