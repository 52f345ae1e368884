package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/require"

	"github.com/greenlight-ci/greenlight/pipelines/deploy"
	"github.com/greenlight-ci/greenlight/pipelines/report"
)

// TestKilledReleases: whatever stage greenlight is killed in, users notice nothing, and the next command restores one
// colour with pods and the traffic.
func TestKilledReleases(t *testing.T) {
	f := newFixture(t)
	f.ensureLive(t)
	good := f.release(t)
	result, _ := f.run(t, good)
	require.Equal(t, report.Released, result.Status, result.Reason)
	greenlight := newHostGreenlight(t, f, good.Source)

	cases := []struct {
		stage string
		// after is how long the stage has run when the process is killed.
		after time.Duration
		// candidate says that the candidate serves after the restoration.
		candidate bool
	}{
		{stage: "deploy", after: 300 * time.Millisecond},
		{stage: "smoke", after: time.Second},
		{stage: "switch", after: 0},
		{stage: "bake", after: time.Second},
		{stage: "teardown", after: 100 * time.Millisecond, candidate: true},
	}
	for _, c := range cases {
		t.Run("killed in "+c.stage, func(t *testing.T) {
			before := f.state(t)
			f.versions++
			version := fmt.Sprintf("v2.%d.0-0123abc", f.versions)
			f.underLoad(t, func() {
				greenlight.kill(t, c.stage, c.after, "release", "--version", version, "--image", result.Image,
					"--scan-dir", good.Out, "--probe-image", greenlight.probe)
				code, output := greenlight.run(t, "rollback", "--probe-image", greenlight.probe)
				require.Zero(t, code, output)
				require.Contains(t, output, "interrupted")
			})
			after := f.state(t)
			want := before.Colours[before.Live].Version
			if c.candidate {
				want = version
			}
			require.Equal(t, want, after.Colours[after.Live].Version)
			require.Zero(t, after.Colours[after.Candidate()].Replicas)
			require.Zero(t, f.heldGPUs(t)[after.Candidate()])
		})
	}
	t.Run("rollback goes to the version before, and back", func(t *testing.T) {
		before := f.state(t)
		f.underLoad(t, func() {
			code, output := greenlight.run(t, "rollback", "--probe-image", greenlight.probe)
			require.Zero(t, code, output)
		})
		require.Equal(t, deploy.Other(before.Live), f.state(t).Live)
	})
	t.Run("a second release is told who holds the lock", func(t *testing.T) {
		f.versions++
		args := []string{
			"release", "--version", fmt.Sprintf("v2.%d.0-0123abc", f.versions), "--image", result.Image,
			"--scan-dir", good.Out, "--probe-image", greenlight.probe,
		}
		first, ended := greenlight.start(t, "deploy", args...)
		code, output := greenlight.run(t, "rollback")
		require.Equal(t, 5, code, output)
		require.Contains(t, output, "is held by")
		// A signal lets the release compensate before it ends.
		require.NoError(t, first.Process.Signal(os.Interrupt))
		require.Contains(t, <-ended, "ended by the caller")
		state := f.state(t)
		require.Zero(t, state.Colours[state.Candidate()].Replicas)
	})
}

// hostGreenlight runs the command on the host, in a mount namespace of its own that knows the registry's name.
type hostGreenlight struct {
	*fixture
	binary string
	hosts  string
	source string
	// probe is the probe image, by digest.
	probe string
}

func newHostGreenlight(t *testing.T, f *fixture, source string) *hostGreenlight {
	t.Helper()
	dir := t.TempDir()
	g := &hostGreenlight{fixture: f, binary: filepath.Join(dir, "greenlight"), hosts: filepath.Join(dir, "hosts"), source: source}
	out, err := exec.CommandContext(t.Context(), "go", "build", "-o", g.binary, "../../cmd/greenlight").CombinedOutput()
	require.NoError(t, err, string(out))
	hosts, err := os.ReadFile("/etc/hosts")
	require.NoError(t, err)
	hostname, port, _ := strings.Cut(f.Registry, ":")
	require.NoError(t, os.WriteFile(g.hosts, append(hosts, "\n127.0.0.1 "+hostname+"\n"...), 0o644))

	repository, err := name.NewRepository("127.0.0.1:" + port + "/greenlight/digits-probe")
	require.NoError(t, err)
	tags, err := remote.List(repository, remote.WithContext(t.Context()))
	require.NoError(t, err)
	require.NotEmpty(t, tags)
	newest, err := remote.Head(repository.Tag(tags[len(tags)-1]), remote.WithContext(t.Context()))
	require.NoError(t, err)
	g.probe = f.Registry + "/greenlight/digits-probe@" + newest.Digest.String()
	return g
}

func (g *hostGreenlight) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	script := `mount --bind "$1" /etc/hosts && shift && exec "$@"`
	all := append([]string{"--mount", "sh", "-c", script, "sh", g.hosts, g.binary}, args...)
	all = append(all, "--config", filepath.Join(g.source, "greenlight.yaml"), "--kubeconfig", g.Kubeconfig,
		"--signing-key", filepath.Join(g.Keys, "cosign.key"), "--verify-key", filepath.Join(g.Keys, "cosign.pub"))
	cmd := exec.CommandContext(t.Context(), "unshare", all...)
	cmd.Env = append(os.Environ(), "COSIGN_PASSWORD=sandbox")
	return cmd
}

func (g *hostGreenlight) run(t *testing.T, args ...string) (code int, output string) {
	t.Helper()
	cmd := g.command(t, args...)
	out, _ := cmd.CombinedOutput()
	return cmd.ProcessState.ExitCode(), string(out)
}

// start runs the command until the stage begins. What it writes is sent when it has ended.
func (g *hostGreenlight) start(t *testing.T, stage string, args ...string) (*exec.Cmd, <-chan string) {
	t.Helper()
	cmd := g.command(t, args...)
	pipe, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	reached, ended := make(chan struct{}), make(chan string, 1)
	go func() {
		var kept bytes.Buffer
		lines := bufio.NewScanner(io.TeeReader(pipe, &kept))
		found := false
		for lines.Scan() {
			if !found && strings.HasPrefix(lines.Text(), stage) && strings.HasSuffix(lines.Text(), "…") {
				found = true
				close(reached)
			}
		}
		_ = cmd.Wait()
		ended <- kept.String()
	}()
	select {
	case <-reached:
	case output := <-ended:
		require.Fail(t, "it ended before "+stage, output)
	case <-time.After(3 * time.Minute):
		_ = cmd.Process.Kill()
		require.Fail(t, "it did not get to "+stage, <-ended)
	}
	return cmd, ended
}

func (g *hostGreenlight) kill(t *testing.T, stage string, after time.Duration, args ...string) {
	t.Helper()
	cmd, ended := g.start(t, stage, args...)
	time.Sleep(after)
	require.NoError(t, cmd.Process.Kill())
	<-ended
}
