package image

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/configfile"
	"github.com/docker/cli/cli/config/types"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Registry says how registries are asked. The zero value is ready to use.
type Registry struct {
	// DockerConfig is a Docker config file (the form of ~/.docker/config.json and of kubernetes.io/dockerconfigjson
	// Secrets), or a directory with a config.json. Default: what the docker and podman commands would use
	// ($DOCKER_CONFIG, ~/.docker, $REGISTRY_AUTH_FILE).
	DockerConfig string `json:"dockerConfig,omitempty"`
	// Insecure allows plain HTTP and certificates that cannot be verified, for any host. localhost, *.localhost and
	// 127.0.0.1 are asked over plain HTTP without it.
	Insecure bool `json:"insecure,omitempty"`
	// Attempts is how often a request is sent in all when the registry is busy or drops it. Default 4.
	Attempts int `json:"attempts,omitempty"`
	// Pause is the wait before the second attempt; it doubles with each further one. Default 500ms.
	Pause time.Duration `json:"pause,omitempty"`
}

// Found is an image that a registry has.
type Found struct {
	// Reference is the reference that was asked for, with the digest that it means.
	Reference Reference `json:"reference"`
	// MediaType is that of the manifest or index.
	MediaType string `json:"mediaType"`
	// Size of the manifest in bytes.
	Size int64 `json:"size"`
}

// Resolve asks the registry whether the reference exists and which digest it means. Errors wrap ErrNotFound,
// ErrUnauthorized or ErrUnreachable where it is one of these.
func (r Registry) Resolve(ctx context.Context, ref Reference) (Found, error) {
	if ref.Tag == "" && ref.Digest == "" {
		return Found{}, fmt.Errorf("%w: %q has neither tag nor digest", ErrMutable, ref)
	}
	target, err := r.Name(ref)
	if err != nil {
		return Found{}, err
	}
	options, err := r.Options(ctx)
	if err != nil {
		return Found{}, err
	}
	// HEAD is cheap, but some registries refuse it or leave the digest out; GET settles both.
	descriptor, err := remote.Head(target, options...)
	if err != nil && !definite(err) {
		var got *remote.Descriptor
		if got, err = remote.Get(target, options...); err == nil {
			descriptor = &got.Descriptor
		}
	}
	if err != nil {
		return Found{}, fmt.Errorf("looking up image %s: %w", ref, Explain(ref, err))
	}
	pinned, err := ref.WithDigest(descriptor.Digest.String())
	if err != nil {
		return Found{}, err
	}
	return Found{Reference: pinned, MediaType: string(descriptor.MediaType), Size: descriptor.Size}, nil
}

// CheckPush asks the registry whether the credentials may push to the reference's repository; nothing is stored. Errors
// are as those of Resolve.
func (r Registry) CheckPush(ctx context.Context, ref Reference) error {
	repository, err := name.NewRepository(ref.Name(), r.NameOptions()...)
	if err != nil {
		return fmt.Errorf("%w: %q: %s", ErrReference, ref, plainNameError(err))
	}
	keychain, err := r.Keychain()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	// The library's check takes no context of its own; the transport carries it.
	asking := contextTransport{ctx: ctx, inner: r.transport()}
	if err := remote.CheckPushPermission(repository.Tag("greenlight-push-check"), keychain, asking); err != nil {
		return fmt.Errorf("asking whether %s may be pushed to: %w", ref.Name(), Explain(ref, err))
	}
	return nil
}

// Name is the reference in the form that go-containerregistry takes: the digest where there is one, else the tag.
func (r Registry) Name(ref Reference) (name.Reference, error) {
	text := ref.Pinned()
	if text == "" {
		text = ref.String()
	}
	target, err := name.ParseReference(text, r.NameOptions()...)
	if err != nil {
		return nil, fmt.Errorf("%w: %q: %s", ErrReference, ref, plainNameError(err))
	}
	return target, nil
}

// NameOptions are go-containerregistry's options for parsing references.
func (r Registry) NameOptions() []name.Option {
	if r.Insecure {
		return []name.Option{name.Insecure}
	}
	return nil
}

// Options are go-containerregistry's options for requests under ctx.
func (r Registry) Options(ctx context.Context) ([]remote.Option, error) {
	keychain, err := r.Keychain()
	if err != nil {
		return nil, err
	}
	return []remote.Option{
		remote.WithContext(ctx),
		remote.WithAuthFromKeychain(keychain),
		remote.WithTransport(r.transport()),
		// The transport above repeats what can be repeated; uploads repeat themselves with this.
		remote.WithRetryStatusCodes(),
		remote.WithRetryBackoff(remote.Backoff{Duration: r.pause(), Factor: 2, Jitter: 0.2, Steps: 2}),
		remote.WithUserAgent("greenlight"),
	}, nil
}

// Keychain looks credentials up in the Docker config. Errors name the file.
func (r Registry) Keychain() (authn.Keychain, error) {
	if r.DockerConfig == "" {
		return authn.DefaultKeychain, nil
	}
	path := r.DockerConfig
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		path = filepath.Join(path, "config.json")
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: reading registry credentials: %w", ErrCredentials, err)
	}
	defer file.Close()
	parsed, err := config.LoadFromReader(file)
	if err != nil {
		// The parser's own message can quote the file.
		return nil, fmt.Errorf("%w: %s is no Docker config file", ErrCredentials, path)
	}
	return fileKeychain{file: parsed, path: path}, nil
}

func (r Registry) pause() time.Duration {
	if r.Pause > 0 {
		return r.Pause
	}
	return 500 * time.Millisecond
}

func (r Registry) transport() http.RoundTripper {
	inner := http.DefaultTransport.(*http.Transport).Clone()
	inner.DialContext = dial
	// A release asks one or two registries, each a few times within seconds.
	inner.IdleConnTimeout = 10 * time.Second
	if r.Insecure {
		inner.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // Asked for by name.
	}
	attempts := r.Attempts
	if attempts <= 0 {
		attempts = 4
	}
	return &retryingTransport{inner: inner, attempts: attempts, pause: r.pause()}
}

// dial connects as the resolver says; a name under .localhost that it does not know is this machine (RFC 6761).
func dial(ctx context.Context, network, address string) (net.Conn, error) {
	dialer := &net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}
	connection, err := dialer.DialContext(ctx, network, address)
	var unknown *net.DNSError
	if host, port, splitErr := net.SplitHostPort(address); splitErr == nil && errors.As(err, &unknown) && strings.HasSuffix(host, ".localhost") {
		return dialer.DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
	}
	return connection, err
}

// fileKeychain answers from one Docker config file.
type fileKeychain struct {
	file *configfile.ConfigFile
	path string
}

// Resolve implements authn.Keychain.
func (k fileKeychain) Resolve(target authn.Resource) (authn.Authenticator, error) {
	for _, key := range []string{target.String(), target.RegistryStr()} {
		if key == name.DefaultRegistry {
			key = authn.DefaultAuthKey
		}
		found, err := k.file.GetAuthConfig(key)
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %s", ErrCredentials, k.path, firstLine(err))
		}
		// The server's address is filled in even where nothing was found.
		found.ServerAddress = ""
		if found != (types.AuthConfig{}) {
			return authn.FromConfig(authn.AuthConfig{
				Username: found.Username, Password: found.Password, Auth: found.Auth,
				IdentityToken: found.IdentityToken, RegistryToken: found.RegistryToken,
			}), nil
		}
	}
	return authn.Anonymous, nil
}

// contextTransport puts requests under a context.
type contextTransport struct {
	ctx   context.Context
	inner http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (t contextTransport) RoundTrip(request *http.Request) (*http.Response, error) {
	return t.inner.RoundTrip(request.WithContext(t.ctx))
}

// definite says whether asking again with GET could not change the answer.
func definite(err error) bool {
	var answer *transport.Error
	return errors.As(err, &answer) && (answer.StatusCode == http.StatusUnauthorized || answer.StatusCode == http.StatusForbidden) ||
		unreachable(err)
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(strings.TrimSpace(err.Error()), "\n")
	return line
}
