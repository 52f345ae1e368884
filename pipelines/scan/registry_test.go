package scan_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"
)

const databaseTag = "/greenlight/trivy-db:2"

// emptyJAR is a ZIP archive without files.
const emptyJAR = "PK\x05\x06\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// vulnerableImage is a Debian 13 with one package and its source's fixed version still ahead, and a vulnerable wheel.
func vulnerableImage() map[string]string {
	return map[string]string{
		"etc/os-release":      "ID=debian\nVERSION_ID=\"13\"\n",
		"etc/debian_version":  "13.1\n",
		"var/lib/dpkg/status": "Package: libssl3\nStatus: install ok installed\nSource: openssl\nVersion: 3.0.1-1\nArchitecture: amd64\n\nPackage: base-files\nStatus: install ok installed\nVersion: 13\nArchitecture: amd64\n",
		"usr/lib/python3/dist-packages/flask-1.0.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: flask\nVersion: 1.0.0\n",
	}
}

// testRegistry is a registry that can be told to misbehave.
type testRegistry struct {
	host     string
	corrupt  bool
	password string

	mu       sync.Mutex
	seen     []string
	failPath string
	status   int
	failures int
	breaks   int
}

func newRegistry(t *testing.T) *testRegistry {
	t.Helper()
	r := &testRegistry{}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) { r.serve(inner, w, request) }))
	t.Cleanup(server.Close)
	r.host = strings.TrimPrefix(server.URL, "http://")
	return r
}

func (r *testRegistry) serve(inner http.Handler, w http.ResponseWriter, request *http.Request) {
	r.mu.Lock()
	r.seen = append(r.seen, request.Method+" "+request.URL.Path)
	fails := r.failures > 0 && strings.Contains(request.URL.Path, r.failPath)
	if fails {
		r.failures--
	}
	isLayer := request.Method == http.MethodGet && strings.Contains(request.URL.Path, "/demo/blobs/")
	breaks := isLayer && r.breaks > 0
	if breaks {
		r.breaks--
	}
	r.mu.Unlock()
	if user, password, _ := request.BasicAuth(); r.password != "" && (user != "robot" || password != r.password) {
		w.Header().Set("Www-Authenticate", `Basic realm="registry"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	switch {
	case fails:
		w.WriteHeader(r.status)
	case breaks, isLayer && r.corrupt:
		recorded := httptest.NewRecorder()
		inner.ServeHTTP(recorded, request)
		body := recorded.Body.Bytes()
		if breaks {
			// The announced length is never reached.
			w.Header().Set("Content-Length", recorded.Header().Get("Content-Length"))
			_, _ = w.Write(body[:len(body)/2])
			panic(http.ErrAbortHandler)
		}
		body[len(body)/2] ^= 0xff
		_, _ = w.Write(body)
	default:
		inner.ServeHTTP(w, request)
	}
}

// fail makes the next requests whose path contains path fail with status.
func (r *testRegistry) fail(path string, status, times int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failPath, r.status, r.failures = path, status, times
}

// breakOff makes the next downloads of parts of images end in the middle.
func (r *testRegistry) breakOff(times int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.breaks = times
}

func (r *testRegistry) forgetRequests() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen = nil
}

func (r *testRegistry) requests(part string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(slices.DeleteFunc(slices.Clone(r.seen), func(s string) bool { return !strings.Contains(s, part) }))
}

func (r *testRegistry) push(t *testing.T, made v1.Image) string {
	t.Helper()
	digest, err := made.Digest()
	require.NoError(t, err)
	ref, err := name.NewDigest(r.host + "/team/demo@" + digest.String())
	require.NoError(t, err)
	require.NoError(t, remote.Write(ref, made))
	return ref.String()
}

func (r *testRegistry) pushImage(t *testing.T, files map[string]string) string {
	t.Helper()
	return r.push(t, imageOf(t, layerOf(t, files)))
}

// pushLayers pushes the files and many more layers.
func (r *testRegistry) pushLayers(t *testing.T, files map[string]string, count int) string {
	t.Helper()
	layers := []v1.Layer{layerOf(t, files)}
	for len(layers) < count {
		layers = append(layers, layerOf(t, map[string]string{"layer": strings.Repeat("x", len(layers))}))
	}
	return r.push(t, imageOf(t, layers...))
}

func (r *testRegistry) pushGarbage(t *testing.T) string {
	t.Helper()
	return r.push(t, imageOf(t, static.NewLayer([]byte("this is no tar archive"), types.DockerLayer)))
}

// tag gives an image a tag and returns the reference by it.
func (r *testRegistry) tag(t *testing.T, ref, tag string) string {
	t.Helper()
	digest, err := name.NewDigest(ref)
	require.NoError(t, err)
	stored, err := remote.Get(digest)
	require.NoError(t, err)
	require.NoError(t, remote.Tag(digest.Context().Tag(tag), stored))
	return digest.Context().Tag(tag).String()
}

func (r *testRegistry) configDigest(t *testing.T, ref string) string {
	t.Helper()
	digest, err := name.NewDigest(ref)
	require.NoError(t, err)
	stored, err := remote.Image(digest)
	require.NoError(t, err)
	config, err := stored.ConfigName()
	require.NoError(t, err)
	return config.String()
}

// pushDatabase pushes a vulnerability database that was updated at a time.
func (r *testRegistry) pushDatabase(t *testing.T, updated time.Time) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "trivy.db")
	database, err := bbolt.Open(path, 0o600, nil)
	require.NoError(t, err)
	const pip = "pip::GitHub Security Advisory pip"
	require.NoError(t, database.Update(func(tx *bbolt.Tx) error {
		put(t, tx, map[string]any{"ID": "debian", "Name": "Debian"}, "data-source", "debian 13")
		put(t, tx, map[string]any{"ID": "ghsa", "Name": "GitHub"}, "data-source", pip)
		put(t, tx, map[string]any{"VulnerableVersions": []string{"<2.0.0"}, "PatchedVersions": []string{"2.0.0"}}, pip, "flask", "CVE-2099-0001")
		put(t, tx, map[string]any{"VulnerableVersions": []string{"<1.1.0"}, "PatchedVersions": []string{"1.1.0"}}, pip, "flask", "CVE-2099-0004")
		put(t, tx, map[string]any{"FixedVersion": "3.0.2-1"}, "debian 13", "openssl", "CVE-2099-0002")
		put(t, tx, map[string]any{"Status": 2}, "debian 13", "openssl", "CVE-2099-0003")
		for id, severity := range map[string]string{"CVE-2099-0001": "CRITICAL", "CVE-2099-0002": "HIGH", "CVE-2099-0003": "LOW", "CVE-2099-0004": "MEDIUM"} {
			put(t, tx, map[string]any{"Title": "Title of\n" + id, "Severity": severity}, "vulnerability", id)
		}
		return nil
	}))
	require.NoError(t, database.Close())
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	metadata, err := json.Marshal(map[string]any{"Version": 2, "UpdatedAt": updated, "NextUpdate": time.Now().Add(24 * time.Hour)})
	require.NoError(t, err)
	packed := pack(t, map[string]string{"trivy.db": string(content), "metadata.json": string(metadata)})
	artifact, err := mutate.Append(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), "application/vnd.aquasec.trivy.config.v1+json"), mutate.Addendum{
		Layer:       static.NewLayer(packed, "application/vnd.aquasec.trivy.db.layer.v1.tar+gzip"),
		Annotations: map[string]string{"org.opencontainers.image.title": "db.tar.gz"},
	})
	require.NoError(t, err)
	tag, err := name.NewTag(r.host + databaseTag)
	require.NoError(t, err)
	require.NoError(t, remote.Write(tag, artifact))
}

func put(t *testing.T, tx *bbolt.Tx, value any, path ...string) {
	t.Helper()
	data, err := json.Marshal(value)
	require.NoError(t, err)
	bucket, err := tx.CreateBucketIfNotExists([]byte(path[0]))
	require.NoError(t, err)
	for _, part := range path[1 : len(path)-1] {
		bucket, err = bucket.CreateBucketIfNotExists([]byte(part))
		require.NoError(t, err)
	}
	require.NoError(t, bucket.Put([]byte(path[len(path)-1]), data))
}

func imageOf(t *testing.T, layers ...v1.Layer) v1.Image {
	t.Helper()
	made, err := mutate.AppendLayers(empty.Image, layers...)
	require.NoError(t, err)
	config, err := made.ConfigFile()
	require.NoError(t, err)
	config.OS, config.Architecture = "linux", "amd64"
	made, err = mutate.ConfigFile(made, config)
	require.NoError(t, err)
	return made
}

func layerOf(t *testing.T, files map[string]string) v1.Layer {
	t.Helper()
	packed := pack(t, files)
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(packed)), nil })
	require.NoError(t, err)
	return layer
}

// pack makes a gzipped tar archive.
func pack(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var packed bytes.Buffer
	zipper := gzip.NewWriter(&packed)
	archive := tar.NewWriter(zipper)
	for _, path := range slices.Sorted(maps.Keys(files)) {
		require.NoError(t, archive.WriteHeader(&tar.Header{Name: path, Mode: 0o644, Size: int64(len(files[path]))}))
		_, err := archive.Write([]byte(files[path]))
		require.NoError(t, err)
	}
	require.NoError(t, archive.Close())
	require.NoError(t, zipper.Close())
	return packed.Bytes()
}

// closedPort is an address at which nobody listens.
func closedPort(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, listener.Close())
	return listener.Addr().String()
}
