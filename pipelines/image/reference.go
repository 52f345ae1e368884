// Package image is what every stage agrees on about images: how a reference is written, which references are immutable,
// what a version looks like, which base images are pinned, and how a registry is asked.
package image

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
)

var (
	// ErrReference is wrapped by errors about text that is no image reference, version or pins file.
	ErrReference = errors.New("invalid image reference")
	// ErrMutable is wrapped by errors about references that can come to mean another image: a tag without a digest, or
	// the tag latest in any form.
	ErrMutable = errors.New("image reference is not immutable")
)

var (
	sha256Digest = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	tagName      = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)
	// The library takes any text of the right characters for a path and any text with a dot for a host.
	repositoryPath = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	registryHost   = regexp.MustCompile(`^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?)(:[0-9]{1,5})?$`)
)

// Reference is an image reference in its parts. The zero value refers to nothing.
type Reference struct {
	// Registry is the host with its port, such as registry.localhost:15000; index.docker.io for Docker Hub.
	Registry string `json:"registry"`
	// Repository is the path below the registry, such as team/demo or library/debian.
	Repository string `json:"repository"`
	// Tag is "" where the reference has none.
	Tag string `json:"tag,omitempty"`
	// Digest is sha256:<64 hex digits>, or "" where the reference has none.
	Digest string `json:"digest,omitempty"`
}

// Parse reads a reference as Docker does (no registry means Docker Hub), except that a missing tag stays missing and is
// not taken for latest. Errors wrap ErrReference.
func Parse(text string) (Reference, error) {
	if text == "" {
		return Reference{}, fmt.Errorf("%w: it is empty; write registry/repository@sha256:…", ErrReference)
	}
	rest, digest, hasDigest := strings.Cut(text, "@")
	if hasDigest && !sha256Digest.MatchString(digest) {
		return Reference{}, fmt.Errorf("%w: %q: the part after @ must be sha256: and 64 hex digits", ErrReference, text)
	}
	// A colon is a tag's when no slash follows it, otherwise a port's.
	repository, tag := rest, ""
	if colon := strings.LastIndexByte(rest, ':'); colon > strings.LastIndexByte(rest, '/') {
		repository, tag = rest[:colon], rest[colon+1:]
		if tag == "" {
			return Reference{}, fmt.Errorf("%w: %q ends in an empty tag", ErrReference, text)
		}
	}
	repo, err := name.NewRepository(repository)
	if err != nil {
		return Reference{}, fmt.Errorf("%w: %q: %s", ErrReference, text, plainNameError(err))
	}
	if !registryHost.MatchString(repo.RegistryStr()) {
		return Reference{}, fmt.Errorf("%w: %q: %q is no registry host", ErrReference, text, repo.RegistryStr())
	}
	if !repositoryPath.MatchString(repo.RepositoryStr()) {
		return Reference{}, fmt.Errorf("%w: %q: repository %q must be lower-case words joined by '.', '_', '-' and '/'", ErrReference, text, repo.RepositoryStr())
	}
	if tag != "" && !tagName.MatchString(tag) {
		return Reference{}, fmt.Errorf("%w: %q: tag %q may only have letters, digits, '_', '.' and '-', at most 128, and must not start with '.' or '-'", ErrReference, text, tag)
	}
	return Reference{Registry: repo.RegistryStr(), Repository: repo.RepositoryStr(), Tag: tag, Digest: digest}, nil
}

// ParsePinned is Parse for a reference that has to mean the same image for ever: it must have a digest, and its tag, if
// it has one, must not be latest. Errors wrap ErrReference or ErrMutable.
func ParsePinned(text string) (Reference, error) {
	ref, err := Parse(text)
	if err != nil {
		return Reference{}, err
	}
	if ref.Tag == "latest" {
		return Reference{}, fmt.Errorf("%w: %q says latest; name a version and its digest", ErrMutable, text)
	}
	if ref.Digest == "" {
		return Reference{}, fmt.Errorf("%w: %q has no digest; write %s@sha256:…", ErrMutable, text, ref.Name())
	}
	return ref, nil
}

// Name is the registry and repository, without tag and digest.
func (r Reference) Name() string { return r.Registry + "/" + r.Repository }

// Pinned is name@digest: what a cluster, a scanner and a signer are given. It is "" without a digest.
func (r Reference) Pinned() string {
	if r.Digest == "" {
		return ""
	}
	return r.Name() + "@" + r.Digest
}

// String is the whole reference: name[:tag][@digest].
func (r Reference) String() string {
	text := r.Name()
	if r.Tag != "" {
		text += ":" + r.Tag
	}
	if r.Digest != "" {
		text += "@" + r.Digest
	}
	return text
}

// WithDigest is the same reference pinned to digest.
func (r Reference) WithDigest(digest string) (Reference, error) {
	if !sha256Digest.MatchString(digest) {
		return Reference{}, fmt.Errorf("%w: digest %q must be sha256: and 64 hex digits", ErrReference, digest)
	}
	r.Digest = digest
	return r, nil
}

// plainNameError is go-containerregistry's complaint without its prefix, on one line.
func plainNameError(err error) string {
	return strings.Join(strings.Fields(strings.TrimPrefix(err.Error(), "could not parse reference: ")), " ")
}
