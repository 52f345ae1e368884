package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	upstream "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/greenlight-ci/greenlight/tests/sandbox/cache"
)

// maxManifest is the size in bytes above which a manifest is refused (the distribution specification asks for at least 4 MiB).
const maxManifest = 4 << 20

// record is a manifest on disk: what was put, under which name.
type record struct {
	Repository  string `json:"repository"`
	Reference   string `json:"reference"`
	ContentType string `json:"contentType"`
	Manifest    []byte `json:"manifest"`
}

func (r record) digest() string {
	h, _, _ := v1.SHA256(bytes.NewReader(r.Manifest))
	return h.String()
}

// handler is the upstream registry with manifests written through to disk.
type handler struct {
	next  http.Handler
	blobs blobStore
	dir   string

	mu      sync.Mutex
	digests map[string]map[string]string // repository → reference → digest
}

// NewHandler returns a registry that keeps everything under dir, with what it finds there. One process at a time may
// use a directory.
func NewHandler(dir string) (http.Handler, error) {
	h := &handler{
		blobs:   blobStore{dir: filepath.Join(dir, "blobs")},
		dir:     filepath.Join(dir, "manifests"),
		digests: map[string]map[string]string{},
	}
	for _, d := range []string{h.blobs.dir, h.dir} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, fmt.Errorf("opening the registry's store: %w", err)
		}
	}
	if err := h.blobs.removeUnfinished(); err != nil {
		return nil, fmt.Errorf("opening the registry's store: %w", err)
	}
	h.next = upstream.New(
		upstream.WithBlobHandler(h.blobs),
		upstream.WithReferrersSupport(true),
		upstream.Logger(log.New(io.Discard, "", 0)),
	)
	if err := h.load(); err != nil {
		return nil, fmt.Errorf("reading the registry's manifests: %w", err)
	}
	return h, nil
}

var manifestPath = regexp.MustCompile(`^/v2/(.+)/manifests/([^/]+)$`)

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h.blobs.serve(w, r) || h.upload(w, r) {
		return
	}
	match := manifestPath.FindStringSubmatch(r.URL.Path)
	switch {
	case match != nil && r.Method == http.MethodPut:
		h.put(w, r, match[1], match[2])
	case match != nil && r.Method == http.MethodDelete:
		h.delete(w, r, match[1], match[2])
	default:
		h.next.ServeHTTP(w, r)
	}
}

func (h *handler) put(w http.ResponseWriter, r *http.Request, repository, reference string) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxManifest))
	if err != nil {
		refuse(w, http.StatusRequestEntityTooLarge, "MANIFEST_INVALID", err.Error())
		return
	}
	rec := record{Repository: repository, Reference: reference, ContentType: r.Header.Get("Content-Type"), Manifest: body}
	digest := rec.digest()
	if strings.Contains(reference, ":") && reference != digest {
		refuse(w, http.StatusBadRequest, "DIGEST_INVALID", "the manifest has the digest "+digest)
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	answer := h.replay(r.Context(), rec)
	if answer.Code == http.StatusCreated {
		if err := h.write(rec); err != nil {
			refuse(w, http.StatusInternalServerError, "UNKNOWN", err.Error())
			return
		}
		h.remember(repository, reference, digest)
		if subject := subjectOf(body); subject != "" {
			// Tells clients that they need not write the fallback tag.
			w.Header().Set("OCI-Subject", subject)
		}
		w.Header().Set("Location", "/v2/"+repository+"/manifests/"+digest)
	}
	pass(w, answer)
}

func (h *handler) delete(w http.ResponseWriter, r *http.Request, repository, reference string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	gone := []string{reference}
	if strings.Contains(reference, ":") {
		for ref, digest := range h.digests[repository] {
			if digest == reference && ref != reference {
				gone = append(gone, ref)
			}
		}
	}
	var first *httptest.ResponseRecorder
	for _, ref := range gone {
		req := r.Clone(r.Context())
		req.URL.Path = "/v2/" + repository + "/manifests/" + ref
		answer := httptest.NewRecorder()
		h.next.ServeHTTP(answer, req)
		if first == nil {
			first = answer
		}
		if answer.Code != http.StatusAccepted {
			continue
		}
		delete(h.digests[repository], ref)
		if err := os.Remove(h.path(repository, ref)); err != nil && !os.IsNotExist(err) {
			refuse(w, http.StatusInternalServerError, "UNKNOWN", err.Error())
			return
		}
	}
	pass(w, first)
}

// load replays all kept manifests. An index is refused until the manifests it lists are there, so what is refused is
// tried again as long as anything gets through.
func (h *handler) load() error {
	files, err := filepath.Glob(filepath.Join(h.dir, "*.json"))
	if err != nil {
		return err
	}
	var pending []record
	for _, path := range files {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		var rec record
		if err := json.Unmarshal(data, &rec); err != nil {
			return fmt.Errorf("%s: %w (remove the file to go on without it)", path, err)
		}
		pending = append(pending, rec)
	}
	for len(pending) > 0 {
		var refused []record
		for _, rec := range pending {
			if h.replay(context.Background(), rec).Code != http.StatusCreated {
				refused = append(refused, rec)
				continue
			}
			h.remember(rec.Repository, rec.Reference, rec.digest())
		}
		if len(refused) == len(pending) {
			// An index whose parts were deleted: of no use to anybody.
			for _, rec := range refused {
				fmt.Fprintf(os.Stderr, "registry: %s@%s lists manifests that are gone: dropped\n", rec.Repository, rec.Reference)
				_ = os.Remove(h.path(rec.Repository, rec.Reference))
			}
			return nil
		}
		pending = refused
	}
	return nil
}

func (h *handler) replay(ctx context.Context, rec record) *httptest.ResponseRecorder {
	req := httptest.NewRequestWithContext(ctx, http.MethodPut, "/v2/"+rec.Repository+"/manifests/"+rec.Reference, bytes.NewReader(rec.Manifest))
	req.Header.Set("Content-Type", rec.ContentType)
	answer := httptest.NewRecorder()
	h.next.ServeHTTP(answer, req)
	return answer
}

func (h *handler) remember(repository, reference, digest string) {
	if h.digests[repository] == nil {
		h.digests[repository] = map[string]string{}
	}
	h.digests[repository][reference] = digest
	h.digests[repository][digest] = digest
}

// write keeps the manifest under its reference and under its digest: a tag may move on while somebody holds the digest.
func (h *handler) write(rec record) error {
	digest := rec
	digest.Reference = rec.digest()
	for _, r := range []record{digest, rec} {
		data, err := json.Marshal(r)
		if err != nil {
			return err
		}
		if err := writeFile(h.path(r.Repository, r.Reference), data); err != nil {
			return err
		}
	}
	return nil
}

func (h *handler) path(repository, reference string) string {
	return filepath.Join(h.dir, cache.Key(repository, reference)+".json")
}

func subjectOf(manifest []byte) string {
	var m struct {
		Subject struct {
			Digest string `json:"digest"`
		} `json:"subject"`
	}
	if json.Unmarshal(manifest, &m) != nil {
		return ""
	}
	return m.Subject.Digest
}

func pass(w http.ResponseWriter, answer *httptest.ResponseRecorder) {
	for key, values := range answer.Header() {
		w.Header()[key] = values
	}
	w.WriteHeader(answer.Code)
	_, _ = w.Write(answer.Body.Bytes())
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	body, _ := json.Marshal(map[string]any{"errors": []map[string]string{{"code": code, "message": message}}})
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// writeFile replaces the file at path as a whole or not at all, crash or no crash.
func writeFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	if _, err := f.Write(data); err != nil {
		_ = f.Close()
		return err
	}
	if err := f.Sync(); err != nil {
		_ = f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
