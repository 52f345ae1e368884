// Package integration tests the library against a real cluster: the one that KUBECONFIG names, with images from
// REGISTRY. `make test` brings the sandbox up for it. It must run where it reaches the addresses of Services.
package integration

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/greenlight-ci/greenlight/pipelines/cluster"
	"github.com/greenlight-ci/greenlight/pipelines/deploy"
	"github.com/greenlight-ci/greenlight/pipelines/observe"
	"github.com/greenlight-ci/greenlight/pipelines/traffic"
)

const service = "standin"

// sandbox is a cluster with a namespace of the test's own and an image to release.
type sandbox struct {
	client    kubernetes.Interface
	namespace string
	// image runs as a user, rootImage is the same as root; missing is a digest that the registry does not have.
	image, rootImage, missing string
}

func newSandbox(t *testing.T) sandbox {
	t.Helper()
	require.NotEmpty(t, os.Getenv("KUBECONFIG"), `no sandbox: run make up, then eval "$(go run ./tests/sandbox env)"`)
	c, err := cluster.Connect(t.Context(), cluster.Options{})
	require.NoError(t, err)
	ns, err := c.Client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "integration-"}}, metav1.CreateOptions{})
	require.NoError(t, err)
	t.Cleanup(func() {
		now := int64(0)
		_ = c.Client.CoreV1().Namespaces().Delete(context.Background(), ns.Name, metav1.DeleteOptions{})
		// Nobody is left who would miss an answer.
		_ = c.Client.CoreV1().Pods(ns.Name).DeleteCollection(context.Background(), metav1.DeleteOptions{GracePeriodSeconds: &now}, metav1.ListOptions{})
	})
	s := sandbox{client: c.Client, namespace: ns.Name}
	s.image, s.rootImage = standin(t)
	s.missing = s.image[:len(s.image)-8] + "00000000"
	return s
}

var (
	built         sync.Once
	image, asRoot string
)

// standin builds the stand-in service and pushes it as an image that runs as a user, and as one that runs as root.
func standin(t *testing.T) (user, root string) {
	t.Helper()
	built.Do(func() {
		binary := filepath.Join(t.TempDir(), "standin")
		build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", binary, "./standin")
		build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
		out, err := build.CombinedOutput()
		require.NoError(t, err, string(out))
		content, err := os.ReadFile(binary)
		require.NoError(t, err)
		var archive bytes.Buffer
		w := tar.NewWriter(&archive)
		require.NoError(t, w.WriteHeader(&tar.Header{Name: "standin", Mode: 0o755, Size: int64(len(content))}))
		_, err = w.Write(content)
		require.NoError(t, err)
		require.NoError(t, w.Close())
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive.Bytes())), nil })
		require.NoError(t, err)
		image, asRoot = push(t, layer, "10001:10001"), push(t, layer, "0:0")
	})
	require.NotEmpty(t, image, "the stand-in could not be built")
	return image, asRoot
}

func push(t *testing.T, layer v1.Layer, user string) string {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layer)
	require.NoError(t, err)
	config, err := img.ConfigFile()
	require.NoError(t, err)
	config = config.DeepCopy()
	config.Architecture, config.OS = runtime.GOARCH, "linux"
	config.Config = v1.Config{Entrypoint: []string{"/standin"}, User: user}
	img, err = mutate.ConfigFile(img, config)
	require.NoError(t, err)
	digest, err := img.Digest()
	require.NoError(t, err)
	registry := os.Getenv("REGISTRY")
	require.NotEmpty(t, registry)
	address := os.Getenv("GREENLIGHT_REGISTRY_ADDR")
	if address == "" {
		address = registry
	}
	const repository = "/greenlight-integration/standin"
	ref, err := name.NewDigest(address + repository + "@" + digest.String())
	require.NoError(t, err)
	require.NoError(t, remote.Write(ref, img, remote.WithContext(t.Context())))
	return registry + repository + "@" + digest.String()
}

// candidate is a colour of the stand-in service.
func (s sandbox) candidate(colour, version string) deploy.Options {
	return deploy.Options{
		Client: s.client, Namespace: s.namespace, Service: service, Colour: colour, Version: version, Image: s.image,
		Release: "r-" + version, Device: "cpu", DrainSeconds: 3, Timeout: time.Minute,
		Requests: map[string]string{"cpu": "10m", "memory": "16Mi"}, Limits: map[string]string{"memory": "64Mi"},
	}
}

func (s sandbox) target(colour string) deploy.Target {
	return deploy.Target{Client: s.client, Namespace: s.namespace, Service: service, Colour: colour, Timeout: time.Minute}
}

// load asks the live Service steadily, half on fresh connections and half on kept ones, and counts. It is an observer
// for both stages.
type load struct {
	mu     sync.Mutex
	counts traffic.Sample
	stop   chan struct{}
	done   sync.WaitGroup
}

func (s sandbox) load(t *testing.T, perSecond int) *load {
	t.Helper()
	svc, err := s.client.CoreV1().Services(s.namespace).Get(t.Context(), service, metav1.GetOptions{})
	require.NoError(t, err)
	l := &load{stop: make(chan struct{}), counts: traffic.Sample{Fresh: map[string]int{}, Kept: map[string]int{}, LastFresh: map[string]time.Time{}}}
	fresh := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	kept := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 100}}
	url := "http://" + net.JoinHostPort(svc.Spec.ClusterIP, "80") + "/ready"
	l.done.Go(func() {
		ticker := time.NewTicker(time.Second / time.Duration(perSecond))
		defer ticker.Stop()
		for n := 0; ; n++ {
			select {
			case <-l.stop:
				return
			case <-ticker.C:
			}
			isFresh := n%2 == 0
			client := kept
			if isFresh {
				client = fresh
			}
			l.done.Go(func() { l.ask(client, url, isFresh) })
		}
	})
	t.Cleanup(l.end)
	return l
}

func (l *load) ask(client *http.Client, url string, fresh bool) {
	sent := time.Now()
	colour, err := ask(client, url)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts.Requests++
	switch {
	case err != nil:
		l.counts.Failed++
		l.counts.Failure = err.Error()
	case fresh:
		l.counts.Fresh[colour]++
		if sent.After(l.counts.LastFresh[colour]) {
			l.counts.LastFresh[colour] = sent
		}
	default:
		l.counts.Kept[colour]++
	}
}

func (l *load) end() {
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.done.Wait()
}

// sample is a copy of what was counted.
func (l *load) sample() traffic.Sample {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.counts
	c.Fresh, c.Kept, c.LastFresh = clone(c.Fresh), clone(c.Kept), clone(c.LastFresh)
	return c
}

func clone[K comparable, V any](m map[K]V) map[K]V {
	out := make(map[K]V, len(m))
	for k, v := range m {
		out[k] = v
	}
	return out
}

func stream[T any](ctx context.Context, next func() T) <-chan T {
	out := make(chan T)
	go func() {
		defer close(out)
		ticker := time.NewTicker(50 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			select {
			case <-ctx.Done():
				return
			case out <- next():
			}
		}
	}()
	return out
}

type switchObserver struct{ *load }

func (o switchObserver) Observe(ctx context.Context) (<-chan traffic.Sample, error) {
	return stream(ctx, o.sample), nil
}

type bakeObserver struct{ *load }

func (o bakeObserver) Observe(ctx context.Context) (<-chan observe.Sample, error) {
	return stream(ctx, func() observe.Sample {
		c := o.sample()
		return observe.Sample{Requests: c.Requests, Failed: c.Failed, Fresh: c.Fresh, Kept: c.Kept, Failure: c.Failure}
	}), nil
}

// testLog writes to the test's log.
type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}
