package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/greenlight-ci/greenlight/tests/sandbox/cache"
	"github.com/greenlight-ci/greenlight/tests/sandbox/registry"
)

func TestDecide(t *testing.T) {
	own := plan{ownEngine: true, ownCluster: true}
	for _, c := range []struct {
		name string
		host host
		want plan
		err  string
	}{
		{"bare Linux", host{system: "linux", root: true}, own, ""},
		{"Docker and dagger but no registry", host{system: "linux", root: true, dagger: "/bin/dagger", docker: true}, own, ""},
		{"a kubeconfig alone", host{system: "linux", root: true, kubeconfig: "/k"}, own, ""},
		{"everything of the caller's", host{system: "darwin", dagger: "/bin/dagger", docker: true, kubeconfig: "/k", registry: "r.example"}, plan{}, ""},
		{"caller's cluster, no Docker", host{system: "linux", root: true, dagger: "/bin/dagger", kubeconfig: "/k", registry: "r.example"}, plan{ownEngine: true}, ""},
		{"the sandbox's own environment", host{system: "linux", root: true, kubeconfig: "/k", registry: registry.Name}, own, ""},
		{"no root", host{system: "linux"}, plan{}, "the sandbox needs root: use Docker with the installed dagger, and set KUBECONFIG and REGISTRY"},
		{"macOS", host{system: "darwin", root: true}, plan{}, "the sandbox runs on Linux only, this is darwin: use Docker"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := c.host.decide()
			if c.err != "" {
				require.ErrorIs(t, err, errCannotRun)
				require.ErrorContains(t, err, c.err)
				require.NotContains(t, err.Error(), "\n")
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.want, got)
		})
	}
}

func TestUsage(t *testing.T) {
	t.Setenv(cache.EnvDir, t.TempDir())
	for _, c := range []struct {
		args string
		code int
		says string
	}{
		{"", 2, "usage:"},
		{"start", 2, `no command "start"`},
		{"status now", 2, "status takes no arguments"},
		{"down --everything", 2, "everything"},
		{"down it", 2, `no argument "it"`},
		{"env", 1, "the sandbox is not up: run make up"},
	} {
		t.Run(c.args, func(t *testing.T) {
			var log bytes.Buffer
			require.Equal(t, c.code, run(t.Context(), strings.Fields(c.args), io.Discard, &log))
			require.Contains(t, log.String(), c.says)
		})
	}
}

// TestEnvironmentInShell has a real shell read what env prints.
func TestEnvironmentInShell(t *testing.T) {
	t.Setenv(cache.EnvDir, t.TempDir())
	awkward := `a 'b' "c" $d \e`
	e := environment{"GREENLIGHT_BASE": awkward}
	e.addPath("/opt/first dir")
	e.addPath("/opt/second")
	require.NoError(t, saveEnvironment(e))
	var out bytes.Buffer
	require.NoError(t, printEnvironment(&out))

	cmd := exec.Command("/bin/sh", "-c", `eval "$1"; printf '%s\n%s\n' "$GREENLIGHT_BASE" "$PATH"`, "sh", out.String())
	cmd.Env = append(os.Environ(), "PATH=/usr/bin:/bin")
	got, err := cmd.Output()
	require.NoError(t, err)
	require.Equal(t, awkward+"\n/opt/first dir:/opt/second:/usr/bin:/bin\n", string(got))
}

func TestLineWriter(t *testing.T) {
	var lines []string
	w := &lineWriter{line: func(l string) { lines = append(lines, l) }}
	for _, part := range []string{"one\ntw", "o\r\n\n", strings.Repeat("x", maxLine+1), "\nlast"} {
		n, err := w.Write([]byte(part))
		require.NoError(t, err)
		require.Len(t, part, n)
	}
	w.flush()
	w.flush()
	require.Equal(t, []string{"one", "two", strings.Repeat("x", maxLine), "x", "last"}, lines)
}

func TestStep(t *testing.T) {
	var out bytes.Buffer
	p := newProgress(&out)
	defer p.stop()
	require.NoError(t, p.step(t.Context(), "engine", func(_ context.Context, log io.Writer) error {
		_, err := io.WriteString(log, "engine: says its name\ndoes not\n")
		return err
	}))
	want := errors.New("broken")
	require.ErrorIs(t, p.step(t.Context(), "cluster", func(context.Context, io.Writer) error { return want }), want)
	for _, line := range []string{"] engine ...", "] engine: says its name", "] engine: does not", "] engine done", "] cluster failed after"} {
		require.Contains(t, out.String(), line)
	}
}

func TestLanesStopTogether(t *testing.T) {
	want := errors.New("broken")
	ended := false
	err := lanes(t.Context(),
		func(ctx context.Context) error { <-ctx.Done(); ended = true; return ctx.Err() },
		func(context.Context) error { return want })
	require.ErrorIs(t, err, want)
	require.True(t, ended)
}

func TestRecordedPackages(t *testing.T) {
	root := t.TempDir()
	got, err := recorded(root)
	require.NoError(t, err)
	require.Empty(t, got)
	require.NoError(t, record(root, []string{"b", "a"}))
	require.NoError(t, record(root, []string{"a", "c"}))
	got, err = recorded(root)
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b", "c"}, got)
}

func TestRemoveCacheSparesOthers(t *testing.T) {
	root := t.TempDir()
	for _, name := range []string{"build/x", "debs/y", "mine/z"} {
		require.NoError(t, os.MkdirAll(root+"/"+name, 0o755))
	}
	require.NoError(t, removeCache(root, io.Discard))
	require.NoDirExists(t, root+"/build")
	require.NoDirExists(t, root+"/debs")
	require.DirExists(t, root+"/mine/z")
}
