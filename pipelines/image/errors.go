package image

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os/exec"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

var (
	// ErrNotFound is wrapped by errors about images that the registry does not have.
	ErrNotFound = errors.New("not found")
	// ErrUnauthorized is wrapped by errors about registries that refuse the credentials, or ask for some.
	ErrUnauthorized = errors.New("access refused")
	// ErrUnreachable is wrapped by errors about registries that cannot be talked to.
	ErrUnreachable = errors.New("registry unreachable")
	// ErrCredentials is wrapped by errors about the file with the registry's credentials.
	ErrCredentials = errors.New("registry credentials")
)

// Explain turns an error of go-containerregistry about ref into one line that says what is wrong and what to do, and
// that wraps ErrNotFound, ErrUnauthorized or ErrUnreachable where it is one of these.
func Explain(ref Reference, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, ErrCredentials) {
		return err
	}
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%w: the Docker config names a credential helper that is not installed: %s; pass a config file with the credentials in it", ErrCredentials, firstLine(err))
	}
	var answer *transport.Error
	if errors.As(err, &answer) {
		return explainAnswer(ref, answer)
	}
	if unreachable(err) {
		return fmt.Errorf("%w: %s: %s; is the address right and the registry running?", ErrUnreachable, ref.Registry, networkReason(err))
	}
	return errors.New(firstLine(err))
}

func explainAnswer(ref Reference, answer *transport.Error) error {
	switch code := answer.StatusCode; {
	case code == http.StatusNotFound:
		return fmt.Errorf("%w: %s has no %s; push it first, or correct the reference", ErrNotFound, ref.Registry, missing(ref))
	case code == http.StatusUnauthorized:
		return fmt.Errorf("%w: %s answers 401 for %s; give credentials that may use it in the Docker config", ErrUnauthorized, ref.Registry, ref.Repository)
	case code == http.StatusForbidden:
		return fmt.Errorf("%w: %s answers 403 for %s; these credentials may not do that", ErrUnauthorized, ref.Registry, ref.Repository)
	case code == http.StatusTooManyRequests:
		return fmt.Errorf("%w: %s still answers 429 (too many requests) after several attempts; wait, or give credentials with a higher limit", ErrUnreachable, ref.Registry)
	case code >= 500:
		return fmt.Errorf("%w: %s still answers %d (%s) after several attempts", ErrUnreachable, ref.Registry, code, http.StatusText(code))
	}
	return fmt.Errorf("%s answers %d (%s) for %s", ref.Registry, answer.StatusCode, http.StatusText(answer.StatusCode), ref.Repository)
}

func missing(ref Reference) string {
	if ref.Digest != "" {
		return ref.Repository + "@" + ref.Digest
	}
	if ref.Tag != "" {
		return ref.Repository + ":" + ref.Tag
	}
	return ref.Repository
}

func unreachable(err error) bool {
	var network net.Error
	var operation *net.OpError
	var address *url.Error
	return errors.As(err, &operation) || errors.As(err, &network) || errors.As(err, &address) || errors.Is(err, context.DeadlineExceeded)
}

// networkReason is the innermost part of a network error: the outer parts repeat the address several times.
func networkReason(err error) string {
	var (
		lookup    *net.DNSError
		authority x509.UnknownAuthorityError
		operation *net.OpError
	)
	switch {
	case errors.As(err, &lookup):
		return "no such host"
	case errors.As(err, &authority):
		return "its certificate is signed by an authority that is not trusted here"
	case errors.Is(err, context.DeadlineExceeded):
		return "no answer in time"
	case errors.As(err, &operation):
		return firstLine(operation.Err)
	}
	var address *url.Error
	if errors.As(err, &address) {
		return firstLine(address.Err)
	}
	return firstLine(err)
}
