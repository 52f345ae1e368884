package image_test

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/require"

	"github.com/greenlight-ci/greenlight/pipelines/image"
)

// quick repeats requests without the waits that real registries need.
func quick() image.Registry { return image.Registry{Pause: time.Millisecond} }

// serve starts a registry behind wrap and pushes an image to team/demo:v1.
func serve(t *testing.T, wrap func(http.Handler) http.Handler) (host, pushed string) {
	t.Helper()
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	open := httptest.NewServer(inner)
	defer open.Close()
	made, err := random.Image(100, 1)
	require.NoError(t, err)
	tag, err := name.NewTag(strings.TrimPrefix(open.URL, "http://") + "/team/demo:v1")
	require.NoError(t, err)
	require.NoError(t, remote.Write(tag, made))
	hash, err := made.Digest()
	require.NoError(t, err)
	server := httptest.NewServer(wrap(inner))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://"), hash.String()
}

func parse(t *testing.T, text string) image.Reference {
	t.Helper()
	ref, err := image.Parse(text)
	require.NoError(t, err)
	return ref
}

func TestResolve(t *testing.T) {
	host, pushed := serve(t, func(h http.Handler) http.Handler { return h })
	for _, text := range []string{host + "/team/demo:v1", host + "/team/demo@" + pushed, host + "/team/demo:other@" + pushed} {
		found, err := quick().Resolve(t.Context(), parse(t, text))
		require.NoError(t, err, text)
		require.Equal(t, pushed, found.Reference.Digest)
		require.Positive(t, found.Size)
	}
	_, port, err := net.SplitHostPort(host)
	require.NoError(t, err)
	found, err := quick().Resolve(t.Context(), parse(t, "registry.localhost:"+port+"/team/demo:v1"))
	require.NoError(t, err, "names under .localhost are this machine")
	require.Equal(t, pushed, found.Reference.Digest)
	for _, text := range []string{host + "/team/demo:v2", host + "/team/other:v1", host + "/team/demo@" + digest} {
		_, err := quick().Resolve(t.Context(), parse(t, text))
		require.ErrorIs(t, err, image.ErrNotFound, text)
		require.ErrorContains(t, err, "push it first")
		require.NotContains(t, err.Error(), "\n")
	}
	_, err = quick().Resolve(t.Context(), parse(t, host+"/team/demo"))
	require.ErrorIs(t, err, image.ErrMutable)
}

func TestResolveRegistryTrouble(t *testing.T) {
	answer := func(status int) func(http.Handler) http.Handler {
		return func(http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Www-Authenticate", `Basic realm="x"`)
				w.WriteHeader(status)
			})
		}
	}
	for name, c := range map[string]struct {
		status  int
		is      error
		message string
	}{
		"401": {401, image.ErrUnauthorized, "answers 401"},
		"403": {403, image.ErrUnauthorized, "answers 403"},
		"429": {429, image.ErrUnreachable, "still answers 429"},
		"500": {500, image.ErrUnreachable, "still answers 500"},
		"503": {503, image.ErrUnreachable, "still answers 503"},
	} {
		t.Run(name, func(t *testing.T) {
			host, _ := serve(t, answer(c.status))
			_, err := quick().Resolve(t.Context(), parse(t, host+"/team/demo:v1"))
			require.ErrorIs(t, err, c.is)
			require.ErrorContains(t, err, c.message)
			require.NotContains(t, err.Error(), "\n")
			require.ErrorIs(t, quick().CheckPush(t.Context(), parse(t, host+"/team/demo:v1")), c.is)
		})
	}
	t.Run("nobody listens", func(t *testing.T) {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		host := listener.Addr().String()
		require.NoError(t, listener.Close())
		_, err = quick().Resolve(t.Context(), parse(t, host+"/team/demo:v1"))
		require.ErrorIs(t, err, image.ErrUnreachable)
		require.ErrorContains(t, err, "connection refused; is the address right and the registry running?")
		require.ErrorIs(t, quick().CheckPush(t.Context(), parse(t, host+"/team/demo")), image.ErrUnreachable)
	})
	t.Run("no such host", func(t *testing.T) {
		_, err := quick().Resolve(t.Context(), parse(t, "registry.invalid/team/demo:v1"))
		require.ErrorIs(t, err, image.ErrUnreachable)
		require.NotContains(t, err.Error(), "\n")
	})
	t.Run("not TLS", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		silent, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer silent.Close()
		_, err = quick().Resolve(ctx, parse(t, silent.Addr().String()+"/team/demo:v1"))
		require.ErrorIs(t, err, image.ErrUnreachable)
		require.ErrorContains(t, err, "no answer in time")
	})
}

func TestResolveRetries(t *testing.T) {
	for name, fail := range map[string]func(http.ResponseWriter){
		"429 with Retry-After": func(w http.ResponseWriter) {
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(http.StatusTooManyRequests)
		},
		"502": func(w http.ResponseWriter) { w.WriteHeader(http.StatusBadGateway) },
		"connection dropped": func(w http.ResponseWriter) {
			connection, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				_ = connection.Close()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			var requests atomic.Int64
			host, pushed := serve(t, func(h http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					// Two of three requests fail.
					if requests.Add(1)%3 != 0 {
						fail(w)
						return
					}
					h.ServeHTTP(w, r)
				})
			})
			found, err := quick().Resolve(t.Context(), parse(t, host+"/team/demo:v1"))
			require.NoError(t, err)
			require.Equal(t, pushed, found.Reference.Digest)
			require.NoError(t, quick().CheckPush(t.Context(), parse(t, host+"/team/demo")))
		})
	}
}

func TestCredentials(t *testing.T) {
	host, pushed := serve(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if user, password, _ := r.BasicAuth(); user != "robot" || password != "correct horse" {
				w.Header().Set("Www-Authenticate", `Basic realm="registry"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	dir := t.TempDir()
	write := func(content string) string {
		path := filepath.Join(dir, "config.json")
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		return path
	}
	ask := func(config string) error {
		r := quick()
		r.DockerConfig = config
		found, err := r.Resolve(t.Context(), parse(t, host+"/team/demo:v1"))
		if err == nil {
			require.Equal(t, pushed, found.Reference.Digest)
		}
		return err
	}
	// "robot:correct horse" and "robot:wrong horse" in base64.
	good := write(`{"auths":{"` + host + `":{"auth":"cm9ib3Q6Y29ycmVjdCBob3JzZQ=="}}}`)
	require.NoError(t, ask(good))
	require.NoError(t, ask(dir))
	err := ask(write(`{"auths":{"` + host + `":{"auth":"cm9ib3Q6d3JvbmcgaG9yc2U="}}}`))
	require.ErrorIs(t, err, image.ErrUnauthorized)
	require.NotContains(t, err.Error(), "horse")
	require.ErrorIs(t, ask(write(`{"auths":{}}`)), image.ErrUnauthorized)
	err = ask(write(`{"auths": correct horse`))
	require.ErrorIs(t, err, image.ErrCredentials)
	require.NotContains(t, err.Error(), "horse")
	require.ErrorIs(t, ask(filepath.Join(dir, "missing.json")), image.ErrCredentials)
	err = ask(write(`{"credHelpers":{"` + host + `":"greenlight-none"}}`))
	require.ErrorIs(t, err, image.ErrCredentials)
	require.ErrorContains(t, err, "docker-credential-greenlight-none")
}
