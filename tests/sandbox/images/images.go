// Package images builds the images that the sandbox's pipeline starts from, once, and pushes them to its registry: a Go
// toolchain, a PyTorch (CPU) base for services, and the pause image of the cluster.
//
// The two Debian ones are made by mmdebstrap from the mirror that the host's own apt sources name, with signatures
// verified. Timestamps are fixed, so the same package versions give the same digests. A build is kept under a key made
// of its recipe, so a recipe that changes is built anew; packages are downloaded once.
package images

import (
	"context"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/greenlight-ci/greenlight/tests/sandbox/cache"
	"github.com/greenlight-ci/greenlight/tests/sandbox/registry"
)

// Repositories in the sandbox's registry.
const (
	GolangRepository = "library/golang"
	BaseRepository   = "greenlight/base-pytorch-cpu"
	PauseRepository  = "greenlight/pause"

	// GolangTag is the tag that pipelines ask for, whatever Go the host has; that one's full version is a tag as well.
	GolangTag = "1.26"
)

// DebianRelease is the major version of Debian that the images are made of.
const DebianRelease = "13"

// DebianPackages are the host packages that building needs.
func DebianPackages() []string {
	return []string{"mmdebstrap", "debian-archive-keyring", "dpkg", "apt"}
}

// epoch is the time that all files in all images carry at most: what is older keeps its own.
func epoch() time.Time { return time.Date(2025, 8, 9, 0, 0, 0, 0, time.UTC) }

// Info names what was pushed. All references carry a digest.
type Info struct {
	// GolangRef is the Go toolchain image under its name at docker.io, whose mirror the sandbox's registry is.
	GolangRef string
	// BaseRef is the PyTorch base image under the registry's name.
	BaseRef string
	// PauseRef is the pause image under the registry's name.
	PauseRef string
	// Changelogs is a directory with the Debian changelogs of the packages in the base image, one gzip file each.
	Changelogs string
}

// EnsureAll builds what is not built yet and pushes what the registry at registryAddr (host:port) lacks. log gets a
// line for each thing that is done.
func EnsureAll(ctx context.Context, registryAddr string, log io.Writer) (Info, error) {
	built, err := BuildAll(ctx, log)
	if err != nil {
		return Info{}, err
	}
	var info Info
	info.Changelogs = built.base.changelogs()
	golang, err := built.golang.push(ctx, registryAddr, log)
	if err != nil {
		return Info{}, err
	}
	info.GolangRef = "docker.io/" + golang
	base, err := built.base.push(ctx, registryAddr, log)
	if err != nil {
		return Info{}, err
	}
	info.BaseRef = registry.Name + "/" + base
	pause, err := built.pause.push(ctx, registryAddr, log)
	if err != nil {
		return Info{}, err
	}
	info.PauseRef = registry.Name + "/" + pause
	return info, nil
}

// Built holds the images as OCI layouts on disk.
type Built struct {
	golang, base, pause built
}

// BuildAll builds what is not built yet, so that building can run beside other work before there is a registry.
func BuildAll(ctx context.Context, log io.Writer) (Built, error) {
	if log == nil {
		log = io.Discard
	}
	var (
		b   Built
		err error
	)
	if b.pause, err = buildPause(ctx, log); err != nil {
		return b, err
	}
	if b.golang, err = buildGolang(ctx, log); err != nil {
		return b, err
	}
	b.base, err = buildBase(ctx, log)
	return b, err
}

// built is an image on disk: an OCI layout under <dir>/image.
type built struct {
	dir        string
	repository string
	tags       []string
}

func (b built) changelogs() string { return filepath.Join(b.dir, "changelogs") }

// push copies the image to the registry under all its tags where they are not there yet, and returns repository:tag@digest.
func (b built) push(ctx context.Context, addr string, log io.Writer) (string, error) {
	index, err := layout.ImageIndexFromPath(filepath.Join(b.dir, "image"))
	if err != nil {
		return "", fmt.Errorf("reading the build of %s: %w", b.repository, err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return "", fmt.Errorf("reading the build of %s: %w", b.repository, err)
	}
	digest := manifest.Manifests[0].Digest
	image, err := index.Image(digest)
	if err != nil {
		return "", fmt.Errorf("reading the build of %s: %w", b.repository, err)
	}
	for _, tag := range b.tags {
		ref, err := name.NewTag(path.Join(addr, b.repository)+":"+tag, name.Insecure)
		if err != nil {
			return "", err
		}
		if head, err := remote.Head(ref, remote.WithContext(ctx)); err == nil && head.Digest == digest {
			continue
		}
		if err := remote.Write(ref, image, remote.WithContext(ctx)); err != nil {
			return "", fmt.Errorf("pushing %s:%s to the registry at %s: %w", b.repository, tag, addr, err)
		}
		_, _ = fmt.Fprintf(log, "images: pushed %s:%s\n", b.repository, tag)
	}
	return b.repository + ":" + b.tags[0] + "@" + digest.String(), nil
}

// ensure returns the cached build under name and the key made of parts, or makes it.
func ensure(ctx context.Context, log io.Writer, buildName string, parts []string, make func(ctx context.Context, dir string) error) (string, string, error) {
	key := cache.Key(parts...)
	dir, err := cache.Build(ctx, buildName, key, func(ctx context.Context, dir string) error {
		started := time.Now()
		_, _ = fmt.Fprintf(log, "images: building %s %s\n", buildName, key)
		if err := make(ctx, dir); err != nil {
			return err
		}
		_, _ = fmt.Fprintf(log, "images: built %s %s in %.0f s\n", buildName, key, time.Since(started).Seconds())
		return nil
	})
	return dir, key, err
}
