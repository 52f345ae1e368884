package engine

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPrepareModule(t *testing.T) {
	upstream, work := t.TempDir(), t.TempDir()
	const gomod = `module github.com/dagger/dagger

go 1.25.6

require (
	dagger.io/dagger v0.20.6
	github.com/dagger/dagger/engine/distconsts v0.20.6
)

replace (
	dagger.io/dagger => ./sdk/go
	github.com/dagger/dagger/engine/distconsts => ./engine/distconsts
)

replace go.opentelemetry.io/otel/log => go.opentelemetry.io/otel/log v0.16.0
`
	require.NoError(t, os.WriteFile(filepath.Join(upstream, "go.mod"), []byte(gomod), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(upstream, "go.sum"), []byte("example.com/a v1.0.0 h1:x=\n"), 0o644))
	require.NoError(t, prepareModule(t.Context(), work, upstream))

	got, err := os.ReadFile(filepath.Join(work, "go.mod"))
	require.NoError(t, err)
	require.Contains(t, string(got), "module greenlight.invalid/engine\n")
	require.Contains(t, string(got), "dagger.io/dagger "+Version)
	require.Contains(t, string(got), "github.com/dagger/dagger "+Version)
	require.Contains(t, string(got), "distconsts => ./standins/distconsts")
	require.Contains(t, string(got), "github.com/vito/tuist/teav1 => ./standins/teav1")
	require.Contains(t, string(got), "go.opentelemetry.io/otel/log v0.16.0", "Dagger's own replacements stay")
	require.NotContains(t, string(got), "./sdk/go")

	sum, err := os.ReadFile(filepath.Join(work, "go.sum"))
	require.NoError(t, err)
	require.Contains(t, string(sum), "example.com/a v1.0.0 h1:x=\n")
	require.Contains(t, string(sum), "\ngithub.com/dagger/dagger "+Version+" h1:")
}

func TestWriteEmbedded(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, writeEmbedded("standins", dir))
	for _, name := range []string{"distconsts/go.mod", "tuist/tuist.go", "teav1/teav1.go", "dang/pkg/dang/values.go"} {
		require.FileExists(t, filepath.Join(dir, name))
	}
	one, err := embeddedDigest("standins")
	require.NoError(t, err)
	both, err := embeddedDigest("standins", "sdk")
	require.NoError(t, err)
	require.NotEqual(t, one, both)
	_, err = embeddedDigest("nothing")
	require.Error(t, err)
}

func TestWriteProxy(t *testing.T) {
	downloads, proxy := t.TempDir(), t.TempDir()
	for name, content := range map[string]string{
		"dagger.io/dagger/@v/v0.20.6.mod":           "module dagger.io/dagger",
		"dagger.io/dagger/@v/v0.20.6.zip":           "zip",
		"dagger.io/dagger/@v/v0.20.6.ziphash":       "h1:x",
		"dagger.io/dagger/@v/v0.20.8.mod":           "module dagger.io/dagger",
		"example.com/graph/only/@v/v1.0.0.mod":      "module example.com/graph/only",
		"sumdb/sums.example.com/lookup/a/@v/v1.mod": "not a module",
	} {
		path := filepath.Join(downloads, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
	}
	require.NoError(t, writeProxy(downloads, proxy, "v0.20.6", "abc123"))

	read := func(name string) string {
		data, err := os.ReadFile(filepath.Join(proxy, name))
		require.NoError(t, err)
		return string(data)
	}
	require.Equal(t, "v0.20.6\nv0.20.8\n", read("dagger.io/dagger/@v/list"))
	require.JSONEq(t, `{"Version":"v0.20.6"}`, read("dagger.io/dagger/@v/abc123.info"))
	require.JSONEq(t, `{"Version":"v0.20.8"}`, read("dagger.io/dagger/@v/v0.20.8.info"))
	require.Equal(t, "zip", read("dagger.io/dagger/@v/v0.20.6.zip"))
	require.Equal(t, "v1.0.0\n", read("example.com/graph/only/@v/list"))
	require.NoDirExists(t, filepath.Join(proxy, "sumdb"))
	require.FileExists(t, filepath.Join(downloads, "dagger.io/dagger/@v/v0.20.6.mod"), "the module cache stays usable")

	require.ErrorContains(t, writeProxy(t.TempDir(), t.TempDir(), "v9.9.9", "abc"), "was not downloaded")
}

func TestLayer(t *testing.T) {
	from := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(from, "src/testdata"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(from, "src/a.go"), []byte("package a"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(from, "src/a_test.go"), []byte("package a"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(from, "src/testdata/x"), nil, 0o600))
	require.NoError(t, os.Symlink("a.go", filepath.Join(from, "src/link")))

	var out bytes.Buffer
	require.NoError(t, layerSource{from: from, prefix: "usr/local/go", skip: unneededInGoroot}.write(&out))
	found := map[string]string{}
	for reader := tar.NewReader(&out); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		require.Zero(t, header.Uid)
		data, err := io.ReadAll(reader)
		require.NoError(t, err)
		found[header.Name] = string(data) + header.Linkname
	}
	require.Equal(t, map[string]string{
		"usr/local/go/src/": "", "usr/local/go/src/a.go": "package a", "usr/local/go/src/link": "a.go",
	}, found)
}

func TestCommandError(t *testing.T) {
	err := command{}.run(t.Context(), "sh", "-c", "echo one; echo two >&2; exit 3")
	require.ErrorContains(t, err, "sh: exit status 3: one | two")
}
