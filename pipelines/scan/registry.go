package scan

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// registry asks registries for digests. Trivy does its own downloads.
type registry struct {
	insecure bool
	attempts int
	pause    time.Duration
}

func newRegistry(o Options) registry {
	return registry{insecure: o.Insecure, attempts: o.Attempts, pause: o.Pause}
}

// resolve finds the digest that a reference means.
func (r registry) resolve(ctx context.Context, text string) (name.Digest, error) {
	target, err := name.ParseReference(text, r.nameOptions()...)
	if err != nil {
		return name.Digest{}, fmt.Errorf("%w: %s", ErrOptions, oneLine(err))
	}
	if !strings.Contains(text, "@") && target.Identifier() == "latest" && !strings.HasSuffix(text, ":latest") {
		return name.Digest{}, fmt.Errorf("%w: %q has neither tag nor digest", ErrOptions, text)
	}
	var digest string
	err = r.retry(ctx, func() error {
		options := []remote.Option{
			remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain),
			remote.WithTransport(r.transport()), remote.WithRetryBackoff(remote.Backoff{Steps: 1}),
		}
		descriptor, err := remote.Head(target, options...)
		if err != nil && !refused(err) {
			// Some registries refuse HEAD or leave the digest out; GET settles both.
			var got *remote.Descriptor
			if got, err = remote.Get(target, options...); err == nil {
				descriptor = &got.Descriptor
			}
		}
		if err == nil {
			digest = descriptor.Digest.String()
		}
		return err
	})
	if err != nil {
		return name.Digest{}, explain(target.Context().RegistryStr(), err)
	}
	return target.Context().Digest(digest), nil
}

func (r registry) nameOptions() []name.Option {
	if r.insecure {
		return []name.Option{name.Insecure}
	}
	return nil
}

func (r registry) transport() http.RoundTripper {
	base := http.DefaultTransport.(*http.Transport).Clone()
	base.DialContext = dial
	if r.insecure {
		base.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // Asked for by name.
	}
	return base
}

// retry repeats do while the registry is in trouble that may pass.
func (r registry) retry(ctx context.Context, do func() error) error {
	for attempt := 1; ; attempt++ {
		err := do()
		if err == nil || attempt >= r.attempts || !passing(err) {
			return err
		}
		timer := time.NewTimer(r.pause << (attempt - 1))
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
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

// refused says whether the registry gave an answer that asking in another way does not change.
func refused(err error) bool {
	var answer *transport.Error
	if errors.As(err, &answer) {
		return answer.StatusCode == http.StatusUnauthorized || answer.StatusCode == http.StatusForbidden
	}
	return networkTrouble(err)
}

// passing says whether the trouble may be over in a moment.
func passing(err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	var answer *transport.Error
	if errors.As(err, &answer) {
		return answer.StatusCode == http.StatusTooManyRequests || answer.StatusCode == http.StatusRequestTimeout || answer.StatusCode >= 500
	}
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EPIPE)
}

func networkTrouble(err error) bool {
	var operation *net.OpError
	var address *url.Error
	return errors.As(err, &operation) || errors.As(err, &address) || passing(err)
}

// explain is one line about what a registry did.
func explain(host string, err error) error {
	var (
		answer    *transport.Error
		lookup    *net.DNSError
		authority x509.UnknownAuthorityError
		operation *net.OpError
	)
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.As(err, &answer):
		switch code := answer.StatusCode; {
		case code == http.StatusNotFound:
			return fmt.Errorf("%s does not have it (404); push it first, or correct the reference", host)
		case code == http.StatusUnauthorized, code == http.StatusForbidden:
			return fmt.Errorf("%s refuses access (%d); give credentials that may read it in the Docker config", host, code)
		case passing(err):
			return fmt.Errorf("%s still answers %d (%s) after several attempts", host, code, http.StatusText(code))
		}
		return fmt.Errorf("%s answers %d (%s)", host, answer.StatusCode, http.StatusText(answer.StatusCode))
	case errors.As(err, &lookup):
		return fmt.Errorf("%s cannot be reached: no such host; is the address right?", host)
	case errors.As(err, &authority):
		return fmt.Errorf("%s cannot be trusted: its certificate is signed by an unknown authority; add it to the system's, or use --insecure", host)
	case errors.As(err, &operation):
		return fmt.Errorf("%s cannot be reached: %s; is the address right and the registry running?", host, oneLine(operation.Err))
	case networkTrouble(err):
		return fmt.Errorf("%s broke the connection off, several times: %s", host, oneLine(err))
	}
	return errors.New(oneLine(err))
}

const longestText = 300

// oneLine is an error's text without line breaks, cut to a readable length.
func oneLine(err error) string {
	text := strings.Join(strings.Fields(err.Error()), " ")
	if len(text) > longestText {
		text = strings.ToValidUTF8(text[:longestText], "") + "…"
	}
	return text
}

// useDockerConfig makes credentials from path the ones that this process uses, until forget is called.
func useDockerConfig(path string) (forget func(), err error) {
	if path == "" {
		return func() {}, nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("%w: Docker config: %w", ErrOptions, err)
	}
	dir, remove := path, func() {}
	if !info.IsDir() && filepath.Base(path) == "config.json" {
		dir = filepath.Dir(path)
	} else if !info.IsDir() {
		// The libraries look for config.json in a directory; a mounted secret is rarely called that.
		absolute, err := filepath.Abs(path)
		if err != nil {
			return nil, fmt.Errorf("%w: Docker config: %w", ErrOptions, err)
		}
		if dir, err = os.MkdirTemp("", "greenlight-docker-"); err != nil {
			return nil, fmt.Errorf("using Docker config %s: %w", path, err)
		}
		remove = func() { _ = os.RemoveAll(dir) }
		if err := os.Symlink(absolute, filepath.Join(dir, "config.json")); err != nil {
			remove()
			return nil, fmt.Errorf("using Docker config %s: %w", path, err)
		}
	}
	before, had := os.LookupEnv("DOCKER_CONFIG")
	if err := os.Setenv("DOCKER_CONFIG", dir); err != nil {
		remove()
		return nil, fmt.Errorf("using Docker config %s: %w", path, err)
	}
	return func() {
		if had {
			_ = os.Setenv("DOCKER_CONFIG", before)
		} else {
			_ = os.Unsetenv("DOCKER_CONFIG")
		}
		remove()
	}, nil
}
