package engine

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
)

// writeImage writes the SDK's image as an OCI layout. Its layers are not compressed: they are read once, on this machine.
func (s *sdkBuild) writeImage() error {
	if err := s.addCodegen(); err != nil {
		return err
	}
	layout := ociLayout{dir: filepath.Join(s.dir, contentDir)}
	if err := layout.create(); err != nil {
		return err
	}
	image := ociImage{Architecture: runtime.GOARCH, OS: "linux"}
	image.Config.WorkingDir = "/"
	image.Config.Env = []string{
		"PATH=/usr/local/go/bin:/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"GOPATH=/go", "CGO_ENABLED=0", "GOTOOLCHAIN=local", "GOFLAGS=-buildvcs=false",
		"SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt",
	}
	image.RootFS.Type = "layers"
	manifest := ociManifest{SchemaVersion: 2, MediaType: mediaManifest}
	for _, l := range []layerSource{
		{from: s.rootfs},
		{from: s.goroot, prefix: "usr/local/go", skip: unneededInGoroot},
		{from: s.warm, skip: mountPoints},
	} {
		blob, err := layout.addLayer(l)
		if err != nil {
			return err
		}
		image.RootFS.DiffIDs = append(image.RootFS.DiffIDs, blob.Digest)
		manifest.Layers = append(manifest.Layers, blob)
	}
	config, err := layout.addJSON(mediaConfig, image)
	if err != nil {
		return err
	}
	manifest.Config = config
	described, err := layout.addJSON(mediaManifest, manifest)
	if err != nil {
		return err
	}
	index := ociIndex{SchemaVersion: 2, MediaType: mediaIndex, Manifests: []ociDescriptor{described}}
	if err := layout.writeJSON("index.json", index); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.dir, digestFile), []byte(described.Digest+"\n"), 0o644)
}

func (s *sdkBuild) addCodegen() error {
	target := filepath.Join(s.warm, "usr/local/bin/codegen")
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	if err := copyFile(filepath.Join(s.programs, "sdk/codegen"), target); err != nil {
		return err
	}
	return os.Chmod(target, 0o755)
}

// unneededInGoroot leaves out what no compilation reads: a third of the files.
func unneededInGoroot(name string, dir bool) bool {
	if !dir {
		return strings.HasSuffix(name, "_test.go")
	}
	switch name {
	case "api", "doc", "misc", "test", "pkg/bootstrap", "pkg/obj":
		return true
	}
	return path.Base(name) == "testdata" || path.Base(name) == ".git"
}

// mountPoints leaves out the directories that were mounted on while the layer was made.
func mountPoints(name string, dir bool) bool {
	return dir && (name == "dev" || name == "proc" || name == "usr/local/go")
}

const (
	mediaIndex    = "application/vnd.oci.image.index.v1+json"
	mediaManifest = "application/vnd.oci.image.manifest.v1+json"
	mediaConfig   = "application/vnd.oci.image.config.v1+json"
	mediaLayer    = "application/vnd.oci.image.layer.v1.tar"
)

type ociDescriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
}

type ociIndex struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     string          `json:"mediaType"`
	Manifests     []ociDescriptor `json:"manifests"`
}

type ociManifest struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     string          `json:"mediaType"`
	Config        ociDescriptor   `json:"config"`
	Layers        []ociDescriptor `json:"layers"`
}

type ociImage struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Config       struct {
		Env        []string
		WorkingDir string
	} `json:"config"`
	RootFS struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
}

// ociLayout is a directory of content-addressed files.
type ociLayout struct{ dir string }

func (o ociLayout) create() error {
	if err := os.MkdirAll(o.blobs(), 0o755); err != nil {
		return err
	}
	return o.writeJSON("oci-layout", map[string]string{"imageLayoutVersion": "1.0.0"})
}

func (o ociLayout) blobs() string { return filepath.Join(o.dir, "blobs", "sha256") }

func (o ociLayout) writeJSON(name string, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(o.dir, name), data, 0o644)
}

func (o ociLayout) addJSON(mediaType string, value any) (ociDescriptor, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return ociDescriptor{}, err
	}
	return o.add(mediaType, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

func (o ociLayout) addLayer(l layerSource) (ociDescriptor, error) {
	blob, err := o.add(mediaLayer, l.write)
	if err != nil {
		return ociDescriptor{}, fmt.Errorf("packing %s: %w", l.from, err)
	}
	return blob, nil
}

func (o ociLayout) add(mediaType string, write func(io.Writer) error) (ociDescriptor, error) {
	f, err := os.CreateTemp(o.blobs(), "blob-")
	if err != nil {
		return ociDescriptor{}, err
	}
	defer f.Close()
	hash := sha256.New()
	if err := write(io.MultiWriter(f, hash)); err != nil {
		return ociDescriptor{}, err
	}
	size, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return ociDescriptor{}, err
	}
	sum := hex.EncodeToString(hash.Sum(nil))
	if err := os.Rename(f.Name(), filepath.Join(o.blobs(), sum)); err != nil {
		return ociDescriptor{}, err
	}
	return ociDescriptor{MediaType: mediaType, Digest: "sha256:" + sum, Size: size}, os.Chmod(filepath.Join(o.blobs(), sum), 0o644)
}

// layerSource is a directory tree that becomes a layer.
type layerSource struct {
	from   string
	prefix string                           // where the tree goes in the image; default its root
	skip   func(name string, dir bool) bool // leaves out what it returns true for; name is relative to from
}

func (l layerSource) write(w io.Writer) error {
	out := tar.NewWriter(w)
	err := filepath.WalkDir(l.from, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(l.from, file)
		if err != nil || name == "." {
			return err
		}
		if l.skip != nil && l.skip(name, entry.IsDir()) {
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		return addToTar(out, file, path.Join(l.prefix, name), entry)
	})
	if err != nil {
		return err
	}
	return out.Close()
}

func addToTar(out *tar.Writer, file, name string, entry fs.DirEntry) error {
	info, err := entry.Info()
	if err != nil {
		return err
	}
	target := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if target, err = os.Readlink(file); err != nil {
			return err
		}
	}
	header, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	header.Name = name
	header.Uid, header.Gid, header.Uname, header.Gname = 0, 0, "", ""
	if entry.IsDir() {
		header.Name += "/"
	}
	if err := out.WriteHeader(header); err != nil || !info.Mode().IsRegular() {
		return err
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(out, f)
	return err
}
