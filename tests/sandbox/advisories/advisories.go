// Package advisories builds a Trivy vulnerability database out of real advisories and serves it from the sandbox's
// registry as the OCI artifact that Trivy downloads.
//
// Python's advisories come from the files beside this one (README.md says from where), Debian's from the changelogs of
// packages.
package advisories

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/greenlight-ci/greenlight/tests/sandbox/cache"
	"github.com/greenlight-ci/greenlight/tests/sandbox/registry"
)

const (
	// Repository is where the database is in the sandbox's registry; Tag is Trivy's schema version.
	Repository = "greenlight/trivy-db"
	Tag        = "2"

	// maxAge is how old the database may get before Ensure builds it anew, so that checks for freshness pass.
	maxAge = 3 * 24 * time.Hour

	// revision is part of the key of a database: raise it when the code changes what is in it.
	revision = "2"

	schemaVersion  = 2
	layerMediaType = "application/vnd.aquasec.trivy.db.layer.v1.tar+gzip"
	configMedia    = "application/vnd.aquasec.trivy.config.v1+json"
	keyAnnotation  = "dev.greenlight.key"
	createdAt      = "org.opencontainers.image.created"
)

//go:embed pypa.jsonl
var pypaAdvisories []byte

//go:embed nvd.jsonl
var nvdVectors []byte

// Options of Ensure.
type Options struct {
	// RegistryAddr is the registry's host:port. Default: registry.Addr.
	RegistryAddr string
	// Debian names where changelogs of a Debian release are. Default: none.
	Debian []DebianSource
	// Log gets a line for each thing that is done. Default: none.
	Log io.Writer
	// Now is the time of building. Default: the present.
	Now time.Time
}

// Ensure pushes a database to the registry unless it has one of the same advisories that is fresh, and returns its
// reference under the registry's name.
func Ensure(ctx context.Context, o Options) (string, error) {
	if o.RegistryAddr == "" {
		o.RegistryAddr = registry.Addr
	}
	if o.Log == nil {
		o.Log = io.Discard
	}
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	o.Now = o.Now.UTC().Truncate(time.Second)
	ref, err := name.NewTag(o.RegistryAddr+"/"+Repository+":"+Tag, name.Insecure)
	if err != nil {
		return "", err
	}
	public := registry.Name + "/" + Repository + ":" + Tag

	changelogs, err := fingerprint(o.Debian)
	if err != nil {
		return "", err
	}
	key := cache.Key(revision, string(pypaAdvisories), string(nvdVectors), changelogs)
	if fresh(ctx, ref, key, o.Now) {
		return public, nil
	}
	fixes, err := readDebian(o.Debian)
	if err != nil {
		return "", err
	}

	dir, err := os.MkdirTemp("", "greenlight-advisories-*")
	if err != nil {
		return "", fmt.Errorf("building the Trivy database: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	counts, err := write(dir, fixes, o.Now)
	if err != nil {
		return "", fmt.Errorf("building the Trivy database: %w", err)
	}
	image, err := pack(dir, key, o.Now)
	if err != nil {
		return "", fmt.Errorf("packing the Trivy database: %w", err)
	}
	if err := remote.Write(ref, image, remote.WithContext(ctx)); err != nil {
		return "", fmt.Errorf("pushing the Trivy database to the registry at %s: %w", o.RegistryAddr, err)
	}
	_, _ = fmt.Fprintf(o.Log, "advisories: pushed %s: %d Python advisories, %d fixes in Debian packages\n", Repository+":"+Tag, counts.python, counts.debian)
	return public, nil
}

// fresh says whether the registry's database is the one with this key and young enough.
func fresh(ctx context.Context, ref name.Reference, key string, now time.Time) bool {
	image, err := remote.Image(ref, remote.WithContext(ctx))
	if err != nil {
		return false
	}
	manifest, err := image.Manifest()
	if err != nil || manifest.Annotations[keyAnnotation] != key {
		return false
	}
	built, err := time.Parse(time.RFC3339, manifest.Annotations[createdAt])
	return err == nil && now.Sub(built) < maxAge && !built.After(now)
}

// write builds trivy.db and metadata.json in dir.
func write(dir string, fixes []releaseFixes, now time.Time) (counts, error) {
	db, err := createDatabase(filepath.Join(dir, "trivy.db"))
	if err != nil {
		return counts{}, err
	}
	python, err := readPython(bytes.NewReader(pypaAdvisories))
	if err != nil {
		return counts{}, err
	}
	nvd, err := readVectors(bytes.NewReader(nvdVectors))
	if err != nil {
		return counts{}, err
	}
	n, err := db.fill(python, nvd, fixes)
	if closeErr := db.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return counts{}, err
	}
	data, err := json.Marshal(metadata{Version: schemaVersion, UpdatedAt: now, NextUpdate: now.Add(maxAge)})
	if err != nil {
		return counts{}, err
	}
	return n, os.WriteFile(filepath.Join(dir, "metadata.json"), data, 0o644)
}

// metadata is metadata.json, which stands beside the database.
type metadata struct {
	Version    int
	NextUpdate time.Time
	UpdatedAt  time.Time
	// DownloadedAt is filled in by whoever downloads it.
	DownloadedAt time.Time
}

// pack makes the artifact: one layer with both files.
func pack(dir, key string, now time.Time) (v1.Image, error) {
	var packed bytes.Buffer
	z, err := gzip.NewWriterLevel(&packed, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	t := tar.NewWriter(z)
	for _, file := range []string{"trivy.db", "metadata.json"} {
		data, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			return nil, err
		}
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: file, Mode: 0o644, Size: int64(len(data)), ModTime: now}); err != nil {
			return nil, err
		}
		if _, err := t.Write(data); err != nil {
			return nil, err
		}
	}
	for _, end := range []io.Closer{t, z} {
		if err := end.Close(); err != nil {
			return nil, err
		}
	}
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), configMedia)
	image, err = mutate.Append(image, mutate.Addendum{
		Layer:       static.NewLayer(packed.Bytes(), layerMediaType),
		MediaType:   layerMediaType,
		Annotations: map[string]string{"org.opencontainers.image.title": "db.tar.gz"},
	})
	if err != nil {
		return nil, err
	}
	return mutate.Annotations(image, map[string]string{keyAnnotation: key, createdAt: now.Format(time.RFC3339)}).(v1.Image), nil
}
