package registry

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/require"

	"github.com/greenlight-ci/greenlight/tests/sandbox/cache"
)

// TestMain lets the test binary be the daemon that Up starts.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == ServeCommand {
		if err := Serve(context.Background(), os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// serve starts a registry on dir and returns its host:port and what stops it.
func serve(t *testing.T, dir string) (string, func()) {
	t.Helper()
	handler, err := NewHandler(dir)
	require.NoError(t, err)
	server := httptest.NewServer(handler)
	return strings.TrimPrefix(server.URL, "http://"), server.Close
}

func tag(t *testing.T, addr, rest string) name.Tag {
	t.Helper()
	ref, err := name.NewTag(addr+"/"+rest, name.Insecure)
	require.NoError(t, err)
	return ref
}

func TestRoundTripAndRestart(t *testing.T) {
	dir := t.TempDir()
	addr, stop := serve(t, dir)
	image, err := random.Image(2048, 3)
	require.NoError(t, err)
	index, err := random.Index(1024, 2, 3)
	require.NoError(t, err)
	digest, err := image.Digest()
	require.NoError(t, err)
	require.NoError(t, remote.Write(tag(t, addr, "team/app:v1"), image))
	require.NoError(t, remote.WriteIndex(tag(t, addr, "team/app:multi"), index))

	signature, err := random.Image(128, 1)
	require.NoError(t, err)
	subject, err := remote.Head(tag(t, addr, "team/app:v1"))
	require.NoError(t, err)
	signed := mutate.Subject(signature, *subject).(v1.Image)
	require.NoError(t, remote.Write(tag(t, addr, "team/app:signature"), signed))

	moved, err := random.Image(512, 1)
	require.NoError(t, err)
	require.NoError(t, remote.Write(tag(t, addr, "team/app:moving"), image))
	require.NoError(t, remote.Write(tag(t, addr, "team/app:moving"), moved))

	check := func(addr string) {
		got, err := remote.Image(tag(t, addr, "team/app:v1"))
		require.NoError(t, err)
		readAll(t, got)
		gotDigest, err := got.Digest()
		require.NoError(t, err)
		require.Equal(t, digest, gotDigest)

		gotIndex, err := remote.Index(tag(t, addr, "team/app:multi"))
		require.NoError(t, err)
		requireWholeIndex(t, gotIndex)

		head, err := remote.Head(tag(t, addr, "team/app:moving"))
		require.NoError(t, err)
		movedDigest, err := moved.Digest()
		require.NoError(t, err)
		require.Equal(t, movedDigest, head.Digest)

		referrers, err := remote.Referrers(tag(t, addr, "team/app").Digest(digest.String()))
		require.NoError(t, err)
		manifest, err := referrers.IndexManifest()
		require.NoError(t, err)
		require.Len(t, manifest.Manifests, 1)

		tags, err := remote.List(tag(t, addr, "team/app").Repository)
		require.NoError(t, err)
		require.Equal(t, []string{"moving", "multi", "signature", "v1"}, tags)
	}
	check(addr)
	stop()

	// An upload that a crash cut short leaves nothing.
	unfinished := filepath.Join(dir, "blobs", "upload-123")
	require.NoError(t, os.WriteFile(unfinished, []byte("half"), 0o644))
	addr, stop = serve(t, dir)
	require.NoFileExists(t, unfinished)
	check(addr)

	// What is deleted by digest stays away, tags included.
	require.NoError(t, remote.Delete(tag(t, addr, "team/app").Digest(digest.String())))
	stop()
	addr, stop = serve(t, dir)
	defer stop()
	_, err = remote.Head(tag(t, addr, "team/app:v1"))
	require.Error(t, err)
	_, err = remote.Head(tag(t, addr, "team/app:moving"))
	require.NoError(t, err)
}

func TestRanges(t *testing.T) {
	addr, stop := serve(t, t.TempDir())
	defer stop()
	blob := []byte("0123456789")
	digest, _, err := v1.SHA256(bytes.NewReader(blob))
	require.NoError(t, err)
	post, err := http.Post("http://"+addr+"/v2/r/blobs/uploads/?digest="+digest.String(), "application/octet-stream", bytes.NewReader(blob))
	require.NoError(t, err)
	require.NoError(t, post.Body.Close())
	require.Equal(t, http.StatusCreated, post.StatusCode)

	for _, c := range []struct {
		name, asked string
		status      int
		body        string
	}{
		{"none", "", http.StatusOK, "0123456789"},
		{"closed", "bytes=2-4", http.StatusPartialContent, "234"},
		{"open, as in a resumed pull", "bytes=7-", http.StatusPartialContent, "789"},
		{"suffix", "bytes=-3", http.StatusPartialContent, "789"},
		{"beyond the end", "bytes=20-", http.StatusRequestedRangeNotSatisfiable, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			req, err := http.NewRequest(http.MethodGet, "http://"+addr+"/v2/r/blobs/"+digest.String(), nil)
			require.NoError(t, err)
			if c.asked != "" {
				req.Header.Set("Range", c.asked)
			}
			resp, err := http.DefaultClient.Do(req)
			require.NoError(t, err)
			defer resp.Body.Close()
			require.Equal(t, c.status, resp.StatusCode)
			body, err := io.ReadAll(resp.Body)
			require.NoError(t, err)
			if c.body != "" {
				require.Equal(t, c.body, string(body))
			}
		})
	}
}

func TestUploadInPieces(t *testing.T) {
	dir := t.TempDir()
	addr, stop := serve(t, dir)
	defer stop()
	send := func(method, url, contentRange, body string) *http.Response {
		req, err := http.NewRequest(method, url, strings.NewReader(body))
		require.NoError(t, err)
		if contentRange != "" {
			req.Header.Set("Content-Range", contentRange)
		}
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		return resp
	}
	digest, _, err := v1.SHA256(strings.NewReader("0123456789"))
	require.NoError(t, err)
	blob := "http://" + addr + "/v2/a/b/blobs/" + digest.String()

	location := "http://" + addr + send(http.MethodPost, "http://"+addr+"/v2/a/b/blobs/uploads/", "", "").Header.Get("Location")
	require.Equal(t, http.StatusAccepted, send(http.MethodPatch, location, "0-3", "0123").StatusCode)
	require.Equal(t, http.StatusRequestedRangeNotSatisfiable, send(http.MethodPatch, location, "5-6", "56").StatusCode)
	again := send(http.MethodPatch, location, "4-6", "456")
	require.Equal(t, http.StatusAccepted, again.StatusCode)
	require.Equal(t, "0-6", again.Header.Get("Range"))
	require.Equal(t, http.StatusBadRequest, send(http.MethodPut, location, "", "789").StatusCode, "no digest")

	location = "http://" + addr + send(http.MethodPost, "http://"+addr+"/v2/a/b/blobs/uploads/", "", "").Header.Get("Location")
	require.Equal(t, http.StatusAccepted, send(http.MethodPatch, location, "", "0123456").StatusCode)
	put := send(http.MethodPut, location+"?digest="+digest.String(), "", "789")
	require.Equal(t, http.StatusCreated, put.StatusCode)
	require.Equal(t, "/v2/a/b/blobs/"+digest.String(), put.Header.Get("Location"))
	require.Equal(t, http.StatusOK, send(http.MethodHead, blob, "", "").StatusCode)

	location = "http://" + addr + send(http.MethodPost, "http://"+addr+"/v2/a/b/blobs/uploads/", "", "").Header.Get("Location")
	require.Equal(t, http.StatusAccepted, send(http.MethodPatch, location, "", "part").StatusCode)
	require.Equal(t, http.StatusNoContent, send(http.MethodDelete, location, "", "").StatusCode)
	left, err := filepath.Glob(filepath.Join(dir, "blobs", "upload-*"))
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestBadUploads(t *testing.T) {
	dir := t.TempDir()
	addr, stop := serve(t, dir)
	defer stop()
	url := "http://" + addr + "/v2/r"
	wrong := "sha256:" + strings.Repeat("0", 64)
	for _, c := range []struct{ name, method, path, body string }{
		{"blob of another digest", http.MethodPost, "/blobs/uploads/?digest=" + wrong, "content"},
		{"manifest of another digest", http.MethodPut, "/manifests/" + wrong, "{}"},
		{"manifest too large", http.MethodPut, "/manifests/tag", strings.Repeat(" ", maxManifest+1)},
	} {
		t.Run(c.name, func(t *testing.T) {
			req, err := http.NewRequest(c.method, url+c.path, strings.NewReader(c.body))
			require.NoError(t, err)
			resp, err := http.DefaultClient.Do(req)
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
			require.GreaterOrEqual(t, resp.StatusCode, 400)
			require.Less(t, resp.StatusCode, 500)
		})
	}
	left, err := filepath.Glob(filepath.Join(dir, "*", "*"))
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestDaemon(t *testing.T) {
	t.Setenv(cache.EnvDir, t.TempDir())
	free := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer l.Close()
		return l.Addr().String()
	}
	addr := free()
	o := Options{Addr: addr}
	info, err := Up(t.Context(), o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, Down(context.Background(), nil)) })

	again, err := Up(t.Context(), o)
	require.NoError(t, err)
	require.Equal(t, info.PID, again.PID, "up twice is one registry")

	image, err := random.Image(64, 1)
	require.NoError(t, err)
	require.NoError(t, remote.Write(tag(t, addr, "a:b"), image))
	require.NoError(t, Down(t.Context(), nil))
	require.Error(t, Healthy(t.Context(), addr))
	require.NoError(t, Down(t.Context(), nil), "down twice is fine")

	_, err = Up(t.Context(), o)
	require.NoError(t, err)
	_, err = remote.Head(tag(t, addr, "a:b"))
	require.NoError(t, err)
}

func TestUpRefuses(t *testing.T) {
	t.Setenv(cache.EnvDir, t.TempDir())
	for _, addr := range []string{"0.0.0.0:15000", "192.168.0.1:15000", "localhost:15000", "127.0.0.1"} {
		_, err := Up(t.Context(), Options{Addr: addr})
		require.Error(t, err, addr)
	}
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	_, err := Up(t.Context(), Options{Addr: strings.TrimPrefix(other.URL, "http://")})
	require.ErrorIs(t, err, ErrAddressTaken)
}

// readAll reads every layer; the client checks the digests while it does.
func readAll(t *testing.T, image v1.Image) {
	t.Helper()
	layers, err := image.Layers()
	require.NoError(t, err)
	for _, layer := range layers {
		r, err := layer.Compressed()
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, r)
		require.NoError(t, err)
		require.NoError(t, r.Close())
	}
}

func requireWholeIndex(t *testing.T, index v1.ImageIndex) {
	t.Helper()
	manifest, err := index.IndexManifest()
	require.NoError(t, err)
	require.NotEmpty(t, manifest.Manifests)
	for _, one := range manifest.Manifests {
		image, err := index.Image(one.Digest)
		require.NoError(t, err)
		readAll(t, image)
	}
}
