// Package e2e runs whole releases, good ones and ones that must be refused, through `dagger call` against the sandbox,
// with users' requests on the live Service all the time.
package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/greenlight-ci/greenlight/pipelines/config"
	"github.com/greenlight-ci/greenlight/pipelines/deploy"
	"github.com/greenlight-ci/greenlight/pipelines/report"
	"github.com/greenlight-ci/greenlight/tests/rehearsal"
)

const (
	serviceDir = "../../images/service"
	gpu        = core.ResourceName("nvidia.com/gpu")
)

// A fixture is the sandbox with something live.
type fixture struct {
	rehearsal.Sandbox
	service   string
	namespace string
	// versions counts up, so that no two releases of a run have the same.
	versions int
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	sandbox, err := rehearsal.FromEnvironment()
	require.NoError(t, err, "the end-to-end tests need the sandbox")
	c, err := config.Load(filepath.Join(serviceDir, "greenlight.yaml"))
	require.NoError(t, err)
	// The time makes versions of this run differ from those of every other.
	return &fixture{Sandbox: sandbox, service: c.Service, namespace: c.Namespace, versions: int(time.Now().Unix() % 1_000_000_000)}
}

// release of a copy of the service with changes.
func (f *fixture) release(t *testing.T, change ...func(t *testing.T, dir string)) rehearsal.Release {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.CopyFS(dir, os.DirFS(serviceDir)))
	for _, c := range change {
		c(t, dir)
	}
	f.versions++
	return rehearsal.Release{
		Source: dir, Version: fmt.Sprintf("v2.%d.0-0123abc", f.versions), Out: filepath.Join(t.TempDir(), "out"),
		BuildArgs: []string{"MODEL_SEED=1"}, Log: newTestLog(t),
	}
}

// overlay puts the files of a failing candidate over the service's.
func overlay(name string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		root := filepath.Join("testdata", "candidates", name)
		require.NoError(t, filepath.WalkDir(root, func(path string, entry os.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				return err
			}
			relative, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			target := filepath.Join(dir, relative)
			if _, err := os.Stat(target); err != nil {
				return fmt.Errorf("the overlay replaces a file that the service does not have: %w", err)
			}
			return os.WriteFile(target, data, 0o644)
		}))
	}
}

// configured replaces text in the config; what is replaced must be there.
func configured(old, replacement string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		path := filepath.Join(dir, "greenlight.yaml")
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Contains(t, string(data), old)
		require.NoError(t, os.WriteFile(path, []byte(strings.ReplaceAll(string(data), old, replacement)), 0o644))
	}
}

// run releases and returns the report and greenlight's exit code.
func (f *fixture) run(t *testing.T, r rehearsal.Release) (*report.Report, int) {
	t.Helper()
	result, err := f.Run(t.Context(), r)
	require.NoError(t, err)
	text, err := os.ReadFile(filepath.Join(r.Out, "exit-code"))
	require.NoError(t, err)
	code, err := strconv.Atoi(strings.TrimSpace(string(text)))
	require.NoError(t, err)
	return result, code
}

func (f *fixture) state(t *testing.T) deploy.State {
	t.Helper()
	state, err := deploy.Colours(t.Context(), f.Client, f.namespace, f.service)
	require.NoError(t, err)
	return state
}

// ensureLive releases the service as it is, if nothing is live.
func (f *fixture) ensureLive(t *testing.T) {
	t.Helper()
	if f.state(t).Live != "" {
		return
	}
	result, code := f.run(t, f.release(t))
	require.Equal(t, report.Released, result.Status, result.Reason)
	require.Zero(t, code)
}

// underLoad runs do while users send requests, none of which may fail.
func (f *fixture) underLoad(t *testing.T, do func()) {
	t.Helper()
	load, err := f.StartLoad(t.Context(), f.namespace, f.service, serviceDir)
	require.NoError(t, err)
	defer func() {
		users, err := load.Stop()
		require.NoError(t, err)
		require.Positive(t, users.Requests)
		require.Zero(t, users.Failed, "users' requests failed: %v, first %+v", users.Reasons, users.Failures)
	}()
	do()
}

// heldGPUs is how many GPUs the pods of the service hold, by colour.
func (f *fixture) heldGPUs(t *testing.T) map[string]int64 {
	t.Helper()
	pods, err := f.Client.CoreV1().Pods(f.namespace).List(t.Context(), meta.ListOptions{LabelSelector: deploy.LabelService + "=" + f.service})
	require.NoError(t, err)
	held := map[string]int64{}
	for _, pod := range pods.Items {
		for _, container := range pod.Spec.Containers {
			quantity := container.Resources.Limits[gpu]
			held[pod.Labels[deploy.LabelColour]] += quantity.Value()
		}
	}
	return held
}

// TestRefusedCandidates: each ends with its exit code and a reason in one line, users notice nothing, the candidate holds
// no GPU afterwards, and a good release works at the end.
func TestRefusedCandidates(t *testing.T) {
	f := newFixture(t)
	f.ensureLive(t)
	otherKey := t.TempDir()
	require.NoError(t, f.MakeKeys(otherKey))

	cases := []struct {
		name   string
		change []func(*testing.T, string)
		with   func(*rehearsal.Release)
		stage  string
		reason string
	}{
		{name: "output is NaN", change: changes(overlay("nan")), stage: "smoke", reason: `(?i)nan`},
		{name: "answers wrong values", change: changes(overlay("wrong")), stage: "smoke", reason: `case .* instead of`},
		{name: "ten times slower", change: changes(overlay("slow")), stage: "latency", reason: `p50|p99|quantile`},
		{
			name:   "never gets ready",
			change: changes(overlay("never-ready"), configured("readyTimeout: 2m", "readyTimeout: 30s")), stage: "deploy", reason: `not ready`,
		},
		{name: "critical advisory in its lock", change: changes(overlay("critical-advisory")), stage: "scan", reason: `CRITICAL`},
		{
			name: "signed with another key", stage: "verify", reason: `another key`,
			with: func(r *rehearsal.Release) { r.SigningKey = filepath.Join(otherKey, "cosign.key") },
		},
		{
			name:   "says cuda where there is no GPU",
			change: changes(configured("device: cpu", "device: cuda"), configured("readyTimeout: 2m", "readyTimeout: 30s")),
			stage:  "deploy|smoke", reason: `(?i)cuda`,
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			before := f.state(t)
			r := f.release(t, c.change...)
			if c.with != nil {
				c.with(&r)
			}
			f.underLoad(t, func() {
				result, code := f.run(t, r)
				require.Equal(t, report.Rejected, result.Status, result.Reason)
				require.Equal(t, 3, code)
				require.Regexp(t, c.reason, result.Reason)
				require.NotContains(t, result.Reason, "\n")
				last := result.Stages[len(result.Stages)-1]
				require.Regexp(t, "^("+c.stage+")$", last.Name)
				require.Nil(t, result.Switch)
			})
			after := f.state(t)
			require.Equal(t, before.Live, after.Live)
			require.Equal(t, before.Colours[before.Live].Version, after.Colours[after.Live].Version)
			require.Zero(t, after.Colours[after.Candidate()].Replicas)
			require.Zero(t, f.heldGPUs(t)[after.Candidate()], "the candidate still holds GPUs")
		})
	}
	t.Run("a good release works afterwards", func(t *testing.T) {
		r := f.release(t)
		f.underLoad(t, func() {
			result, code := f.run(t, r)
			require.Equal(t, report.Released, result.Status, result.Reason)
			require.Zero(t, code)
			require.Zero(t, result.Switch.Failed)
		})
		require.Equal(t, r.Version, f.state(t).Colours[f.state(t).Live].Version)
	})
}

func changes(list ...func(*testing.T, string)) []func(*testing.T, string) { return list }

// TestExitCodes: `dagger call release` itself ends with greenlight's code, and its last line says why.
func TestExitCodes(t *testing.T) {
	f := newFixture(t)
	f.ensureLive(t)
	noContext := writeFile(t, "apiVersion: v1\nkind: Config\nclusters: []\nusers: []\ncontexts: []\n")
	execPlugin := writeFile(t, execKubeconfig)
	cases := []struct {
		name   string
		change func(*testing.T, string)
		with   func(*rehearsal.Release)
		code   int
		reason string
	}{
		{name: "no config", with: func(r *rehearsal.Release) { r.Config = "missing.yaml" }, code: 2, reason: `missing\.yaml`},
		{name: "malformed config", change: configured("service: digits", "service: [digits"), code: 2, reason: `greenlight\.yaml:\d+`},
		{name: "unknown key", change: configured("replicas: 1", "replicsa: 1"), code: 2, reason: `unknown key "replicsa"`},
		{name: "kubeconfig without current context", with: func(r *rehearsal.Release) { r.Kubeconfig = noContext }, code: 2, reason: `context`},
		{name: "kubeconfig with an exec plugin", with: func(r *rehearsal.Release) { r.Kubeconfig = execPlugin }, code: 2, reason: `aws`},
		{name: "missing kubeconfig", with: func(r *rehearsal.Release) { r.Kubeconfig = "/does/not/exist" }, code: 2, reason: `kubeconfig`},
		{name: "missing signing key", with: func(r *rehearsal.Release) { r.SigningKey = "/does/not/exist" }, code: 2, reason: `signing-key`},
		{
			name:   "unreachable registry",
			change: configured("registry.localhost:15000/", "unreachable.localhost:9/"), code: 2, reason: `unreachable\.localhost`,
		},
	}
	before := f.state(t)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var list []func(*testing.T, string)
			if c.change != nil {
				list = append(list, c.change)
			}
			r := f.release(t, list...)
			if c.with != nil {
				c.with(&r)
			}
			log := newTestLog(t)
			r.Log = log
			code, _, err := f.Call(t.Context(), r)
			require.NoError(t, err)
			require.Equal(t, c.code, code)
			require.Regexp(t, c.reason, log.String())
		})
	}
	require.Equal(t, before, f.state(t), "something was changed")
}

func writeFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

const execKubeconfig = `apiVersion: v1
kind: Config
current-context: c
clusters: [{name: c, cluster: {server: "https://192.0.2.1:6443"}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
users: [{name: u, user: {exec: {apiVersion: client.authentication.k8s.io/v1, command: aws, interactiveMode: Never}}}]
`

// testLog keeps what dagger says, and shows it when the test fails.
type testLog struct{ kept strings.Builder }

func newTestLog(t *testing.T) *testLog {
	l := &testLog{}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(l.String())
		}
	})
	return l
}

func (l *testLog) Write(p []byte) (int, error) {
	l.kept.Write(p)
	return len(p), nil
}

func (l *testLog) String() string { return l.kept.String() }
