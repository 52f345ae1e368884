package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/stretchr/testify/require"
)

func TestHostMirrors(t *testing.T) {
	const debian = "ID=debian\nVERSION_CODENAME=bookworm\n"
	for _, c := range []struct {
		name, release, list, sources string
		want                         mirrors
	}{
		{name: "deb822", release: debian, sources: "# comment\nTypes: deb deb-src\nURIs: http://m.example/debian\nSuites: bookworm\n bookworm-updates\nComponents: main\n\n" +
			"Types: deb\nURIs: http://m.example/security\nSuites: bookworm-security\nComponents: main contrib\n", want: mirrors{"http://m.example/debian", "http://m.example/security"}},
		{name: "one line", release: debian, list: "deb [arch=amd64 signed-by=/a b] http://m.example/d bookworm main # x\ndeb http://m.example/s bookworm-security main\n", want: mirrors{"http://m.example/d", "http://m.example/s"}},
		{
			name: "disabled and sources only", release: debian, list: "# deb http://a.example b main\ndeb-src http://a.example bookworm main\n",
			sources: "Types: deb\nEnabled: no\nURIs: http://a.example\nSuites: bookworm\nComponents: main\n", want: mirrors{},
		},
		{name: "other suites and components", release: debian, list: "deb http://a.example nodistro main\ndeb http://a.example bookworm contrib\n", want: mirrors{}},
		{name: "other methods", release: debian, list: "deb cdrom:[Debian 12]/ bookworm main\ndeb file:/srv/debian bookworm main\ndeb https://a.example bookworm main\n", want: mirrors{Main: "https://a.example"}},
		{name: "no security", release: debian, list: "deb http://a.example bookworm main\n", want: mirrors{Main: "http://a.example"}},
		{name: "another distribution", release: "ID=ubuntu\nVERSION_CODENAME=noble\n", list: "deb http://a.example noble main\n", want: mirrors{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			etc := t.TempDir()
			require.NoError(t, os.MkdirAll(filepath.Join(etc, "sources.list.d"), 0o755))
			release := filepath.Join(etc, "os-release")
			require.NoError(t, os.WriteFile(release, []byte(c.release), 0o644))
			if c.list != "" {
				require.NoError(t, os.WriteFile(filepath.Join(etc, "sources.list"), []byte(c.list), 0o644))
			}
			require.NoError(t, os.WriteFile(filepath.Join(etc, "sources.list.d", "debian.sources"), []byte(c.sources), 0o644))
			got, err := hostMirrors(etc, release)
			require.NoError(t, err)
			require.Equal(t, c.want, got)
		})
	}
}

func TestSourceLines(t *testing.T) {
	require.Empty(t, mirrors{}.sources("trixie"))
	require.Len(t, mirrors{Main: "http://a.example"}.sources("trixie"), 2)
	lines := mirrors{Main: "http://a.example", Security: "http://s.example"}.sources("trixie")
	require.Equal(t, "deb [signed-by="+keyring+"] http://s.example trixie-security main", lines[2])
}

const status = `Package: base-files
Essential: yes
Status: install ok installed
Provides: base

Package: python3
Depends: libpython3 (= 3.13), python3-minimal:any | python3-other
Description: text
 Depends: nothing

Package: libpython3
Pre-Depends: base

Package: python3-torch
Depends: python3, libtorch
Description: x

Package: libtorch
Depends: libtorch-test (= 1)

Package: left-out
Provides: libtorch-test (= 1)
`

func TestClosure(t *testing.T) {
	packages := parseStatus([]byte(status))
	require.Len(t, packages, 6)
	require.Equal(t, map[string]bool{"base-files": true, "python3": true, "libpython3": true}, closure(packages, []string{"python3"}))
	require.Len(t, closure(packages, []string{"python3-torch"}), 6)
}

// entries writes a tar file with the given names and contents; a name that ends in / is a directory, contents that
// start with "-> " and "=> " are symbolic and hard links.
func entries(t *testing.T, files ...[2]string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "rootfs.tar")
	f, err := os.Create(path)
	require.NoError(t, err)
	defer f.Close()
	w := tar.NewWriter(f)
	for _, file := range files {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: file[0], Mode: 0o644, Size: int64(len(file[1])), ModTime: time.Unix(1, 0)}
		switch {
		case file[0][len(file[0])-1] == '/':
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		case len(file[1]) > 3 && file[1][:3] == "-> ":
			h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, file[1][3:], 0
		case len(file[1]) > 3 && file[1][:3] == "=> ":
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, file[1][3:], 0
		}
		require.NoError(t, w.WriteHeader(h))
		if h.Size > 0 {
			_, err := io.WriteString(w, file[1])
			require.NoError(t, err)
		}
	}
	require.NoError(t, w.Close())
	return path
}

func names(t *testing.T, l *layer) []string {
	t.Helper()
	r, err := l.Uncompressed()
	require.NoError(t, err)
	defer r.Close()
	var out []string
	for in := tar.NewReader(r); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		require.NoError(t, err)
		out = append(out, h.Name)
	}
}

func TestSplitRootfs(t *testing.T) {
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, err := z.Write([]byte("libtorch (1) sid; urgency=low\n"))
	require.NoError(t, err)
	require.NoError(t, z.Close())
	tarball := entries(t,
		[2]string{"./usr/", ""},
		[2]string{"./usr/lib/libtorch.so", "library"},
		[2]string{"./usr/lib/libtorch.so.1", "=> ./usr/lib/libtorch.so"},
		[2]string{"./usr/lib/libpython3.so", "library"},
		[2]string{"./usr/lib/python3/dist-packages/torch/__init__.py", "code"},
		[2]string{"./usr/lib/python3/dist-packages/torch/__pycache__/__init__.cpython-313.pyc", "bytes"},
		[2]string{"./usr/lib/python3/dist-packages/torch/tests/test_it.py", "test"},
		[2]string{"./usr/share/doc/libtorch/changelog.Debian.gz", packed.String()},
		[2]string{"./usr/share/doc/libtorch/copyright", "licence"},
		[2]string{"./usr/share/doc/libtorch/README", "text"},
		[2]string{"./usr/share/doc/libpython3", "-> libpython3-other"},
		[2]string{"./var/cache/apt/pkgcache.bin", "cache"},
		[2]string{"./var/lib/dpkg/status", status},
		[2]string{"./var/lib/dpkg/status-old", status},
		[2]string{"./var/lib/dpkg/info/libpython3.list", "/.\n/usr\n/lib/libpython3.so"},
		[2]string{"./var/lib/dpkg/info/libtorch:amd64.list", "/.\n/usr\n/lib/libtorch.so\n/usr/share/doc/libtorch/copyright"},
		[2]string{"./var/lib/dpkg/info/python3-torch.list", "/usr/lib/python3/dist-packages/torch/__init__.py"},
	)
	build := func() (string, []*layer) {
		dir := t.TempDir()
		layers, err := splitRootfs(t.Context(), dir, tarball, []string{"python3"})
		require.NoError(t, err)
		return dir, layers
	}
	dir, layers := build()
	require.Len(t, layers, 2)
	require.Equal(t, []string{
		"./usr/", "./usr/lib/libpython3.so", "./usr/share/doc/libpython3", "./var/lib/dpkg/status",
		"./var/lib/dpkg/info/libpython3.list", "./var/lib/dpkg/info/libtorch:amd64.list", "./var/lib/dpkg/info/python3-torch.list",
	}, names(t, layers[0]))
	require.Equal(t, []string{
		"./usr/lib/libtorch.so", "./usr/lib/libtorch.so.1", "./usr/lib/python3/dist-packages/torch/__init__.py",
		"./usr/lib/python3/dist-packages/torch/__pycache__/__init__.cpython-313.pyc", "./usr/share/doc/libtorch/copyright",
	}, names(t, layers[1]))
	require.FileExists(t, filepath.Join(dir, "changelogs", "libtorch.gz"))

	_, again := build()
	for i := range layers {
		require.Equal(t, layers[i].digest, again[i].digest, "the same content is the same layer")
	}
}

func TestGorootLayer(t *testing.T) {
	root := t.TempDir()
	for _, name := range []string{"bin/go", "src/fmt/print.go", "src/fmt/print_test.go", "src/fmt/testdata/x", "test/a.go", "api/go1.txt", "pkg/tool/link"} {
		require.NoError(t, os.MkdirAll(filepath.Join(root, filepath.Dir(name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(root, name), []byte(name), 0o755))
	}
	l, err := gorootLayer(t.Context(), t.TempDir(), root)
	require.NoError(t, err)
	var files []string
	for _, name := range names(t, l) {
		if name[len(name)-1] != '/' {
			files = append(files, name)
		}
	}
	require.Equal(t, []string{"usr/local/go/bin/go", "usr/local/go/pkg/tool/link", "usr/local/go/src/fmt/print.go"}, files)
}

func TestWriteLayout(t *testing.T) {
	write := func() v1.Hash {
		dir := t.TempDir()
		binary := filepath.Join(dir, "pause")
		require.NoError(t, os.WriteFile(binary, []byte("binary"), 0o755))
		l, err := fileLayer(dir, binary, "pause")
		require.NoError(t, err)
		require.NoError(t, writeLayout(dir, v1.Config{Entrypoint: []string{"/pause"}}, []*layer{l}))
		require.NoFileExists(t, l.path)
		index, err := layout.ImageIndexFromPath(filepath.Join(dir, "image"))
		require.NoError(t, err)
		manifest, err := index.IndexManifest()
		require.NoError(t, err)
		require.Len(t, manifest.Manifests, 1)
		image, err := index.Image(manifest.Manifests[0].Digest)
		require.NoError(t, err)
		config, err := image.ConfigFile()
		require.NoError(t, err)
		require.Equal(t, "linux", config.OS)
		require.Len(t, config.RootFS.DiffIDs, 1)
		return manifest.Manifests[0].Digest
	}
	require.Equal(t, write(), write(), "the same content is the same image")
}
