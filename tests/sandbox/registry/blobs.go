package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"time"

	upstream "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// blobStore keeps blobs as <dir>/<algorithm>/<hex>. Digests are verified by the caller while a blob is written, and a
// file gets its final name only when it is whole, so a blob that is there is right and need not be hashed again.
type blobStore struct{ dir string }

var (
	_ upstream.BlobStatHandler   = blobStore{}
	_ upstream.BlobPutHandler    = blobStore{}
	_ upstream.BlobDeleteHandler = blobStore{}
)

func (s blobStore) path(h v1.Hash) string { return filepath.Join(s.dir, h.Algorithm, h.Hex) }

// Stat implements the upstream's extension interface.
func (s blobStore) Stat(_ context.Context, _ string, h v1.Hash) (int64, error) {
	info, err := os.Stat(s.path(h))
	if errors.Is(err, os.ErrNotExist) {
		return 0, upstream.ErrNotFound
	}
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// Get implements upstream.BlobHandler.
func (s blobStore) Get(_ context.Context, _ string, h v1.Hash) (io.ReadCloser, error) {
	f, err := os.Open(s.path(h))
	if errors.Is(err, os.ErrNotExist) {
		return nil, upstream.ErrNotFound
	}
	return f, err
}

// Put implements the upstream's extension interface: rc fails at its end if it does not have the digest h.
func (s blobStore) Put(_ context.Context, _ string, h v1.Hash, rc io.ReadCloser) (err error) {
	f, err := os.CreateTemp(s.dir, "upload-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if _, err := io.Copy(f, rc); err != nil {
		return err
	}
	// A crash of the machine must not leave a whole name on half a file.
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(s.path(h)), 0o755); err != nil {
		return err
	}
	return os.Rename(f.Name(), s.path(h))
}

// Delete implements the upstream's extension interface.
func (s blobStore) Delete(_ context.Context, _ string, h v1.Hash) error {
	err := os.Remove(s.path(h))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// removeUnfinished removes uploads that a killed process left behind.
func (s blobStore) removeUnfinished() error {
	left, err := filepath.Glob(filepath.Join(s.dir, "upload-*"))
	if err != nil {
		return err
	}
	for _, path := range left {
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("removing an unfinished upload: %w", err)
		}
	}
	return nil
}

var blobPath = regexp.MustCompile(`^/v2/.+/blobs/([a-z0-9]+:[0-9a-f]+)$`)

// serve answers reads of blobs, with ranges, conditional requests and sendfile as net/http does them. It returns false
// for everything else.
func (s blobStore) serve(w http.ResponseWriter, r *http.Request) bool {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return false
	}
	match := blobPath.FindStringSubmatch(r.URL.Path)
	if match == nil {
		return false
	}
	h, err := v1.NewHash(match[1])
	if err != nil {
		return false
	}
	f, err := os.Open(s.path(h))
	if err != nil {
		return false
	}
	defer f.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Docker-Content-Digest", h.String())
	w.Header().Set("ETag", `"`+h.String()+`"`)
	http.ServeContent(w, r, "", time.Time{}, f)
	return true
}
