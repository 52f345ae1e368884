package cluster

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"time"
)

// packPause writes an OCI image archive whose one layer holds the static binary at program as /pause. The same binary
// gives the same bytes.
func packPause(archive, program string) error {
	binary, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	var layer bytes.Buffer
	if err := writeTar(&layer, []tarFile{{name: "pause", mode: 0o755, data: binary}}); err != nil {
		return err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Entrypoint": []string{"/pause"}, "User": "65535:65535"},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + digest(layer.Bytes())}},
	})
	if err != nil {
		return err
	}
	type descriptor struct {
		MediaType   string            `json:"mediaType"`
		Digest      string            `json:"digest"`
		Size        int               `json:"size"`
		Annotations map[string]string `json:"annotations,omitempty"`
	}
	describe := func(kind string, data []byte) descriptor {
		return descriptor{MediaType: "application/vnd.oci.image." + kind, Digest: "sha256:" + digest(data), Size: len(data)}
	}
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": describe("config.v1+json", config), "layers": []descriptor{describe("layer.v1.tar", layer.Bytes())},
	})
	if err != nil {
		return err
	}
	entry := describe("manifest.v1+json", manifest)
	entry.Annotations = map[string]string{"io.containerd.image.name": sandboxImage}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []descriptor{entry}})
	if err != nil {
		return err
	}
	files := []tarFile{
		{name: "oci-layout", mode: 0o644, data: []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		{name: "index.json", mode: 0o644, data: index},
	}
	for _, blob := range [][]byte{manifest, config, layer.Bytes()} {
		files = append(files, tarFile{name: "blobs/sha256/" + digest(blob), mode: 0o644, data: blob})
	}
	var out bytes.Buffer
	if err := writeTar(&out, files); err != nil {
		return err
	}
	return os.WriteFile(archive, out.Bytes(), 0o644)
}

type tarFile struct {
	name string
	mode int64
	data []byte
}

func writeTar(to io.Writer, files []tarFile) error {
	w := tar.NewWriter(to)
	for _, f := range files {
		header := &tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: f.mode, Size: int64(len(f.data)), ModTime: time.Unix(0, 0)}
		if err := w.WriteHeader(header); err != nil {
			return fmt.Errorf("packing %s: %w", f.name, err)
		}
		if _, err := w.Write(f.data); err != nil {
			return fmt.Errorf("packing %s: %w", f.name, err)
		}
	}
	return w.Close()
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
