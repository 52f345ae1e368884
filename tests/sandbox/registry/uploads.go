package registry

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// An upload in pieces is collected in a file; the original would hold it in memory, a gigabyte for a base image.

var uploadPath = regexp.MustCompile(`^/v2/(.+)/blobs/uploads/([0-9]+)$`)

func (s blobStore) uploadFile(id string) string { return filepath.Join(s.dir, "upload-"+id) }

// upload answers requests that carry on with an upload. It returns false for everything else.
func (h *handler) upload(w http.ResponseWriter, r *http.Request) bool {
	match := uploadPath.FindStringSubmatch(r.URL.Path)
	if match == nil {
		return false
	}
	repository, id := match[1], match[2]
	switch r.Method {
	case http.MethodPatch:
		h.appendPiece(w, r, id)
	case http.MethodPut:
		h.finishUpload(w, r, repository, id)
	case http.MethodDelete:
		_ = os.Remove(h.blobs.uploadFile(id))
		w.WriteHeader(http.StatusNoContent)
	default:
		return false
	}
	return true
}

func (h *handler) appendPiece(w http.ResponseWriter, r *http.Request, id string) {
	f, err := os.OpenFile(h.blobs.uploadFile(id), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		refuse(w, http.StatusInternalServerError, "UNKNOWN", err.Error())
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		refuse(w, http.StatusInternalServerError, "UNKNOWN", err.Error())
		return
	}
	size := info.Size()
	if given := r.Header.Get("Content-Range"); given != "" && !strings.HasPrefix(given, fmt.Sprintf("%d-", size)) {
		w.Header().Set("Range", fmt.Sprintf("0-%d", max(size, 1)-1))
		refuse(w, http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID", fmt.Sprintf("the next piece starts at %d", size))
		return
	}
	added, err := io.Copy(f, r.Body)
	if err != nil {
		// The client went away or the disk is full: what came cannot be told from what did not.
		_ = os.Remove(f.Name())
		refuse(w, http.StatusInternalServerError, "BLOB_UPLOAD_INVALID", err.Error())
		return
	}
	w.Header().Set("Location", r.URL.Path)
	w.Header().Set("Range", fmt.Sprintf("0-%d", max(size+added, 1)-1))
	w.WriteHeader(http.StatusAccepted)
}

// finishUpload hands the pieces and the body, which is all or the last of it, to the original as one upload.
func (h *handler) finishUpload(w http.ResponseWriter, r *http.Request, repository, id string) {
	path := h.blobs.uploadFile(id)
	whole := r.Clone(r.Context())
	whole.Method = http.MethodPost
	whole.URL.Path = "/v2/" + repository + "/blobs/uploads/"
	whole.Body = r.Body
	if f, err := os.Open(path); err == nil {
		defer func() {
			_ = f.Close()
			_ = os.Remove(path)
		}()
		whole.Body = io.NopCloser(io.MultiReader(f, r.Body))
		whole.ContentLength = -1
	}
	digest := r.URL.Query().Get("digest")
	if digest == "" {
		refuse(w, http.StatusBadRequest, "DIGEST_INVALID", "the digest of the upload is missing")
		return
	}
	w.Header().Set("Location", "/v2/"+repository+"/blobs/"+digest)
	h.next.ServeHTTP(w, whole)
}
