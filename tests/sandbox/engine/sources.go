package engine

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// embedded holds the source files that the builds need. Their names end in .txt because a directory with a go.mod is a
// module of its own, which cannot be embedded.
//
//go:embed sources
var embedded embed.FS

// embeddedDigest names the exact content of the embedded files and directories below sources.
func embeddedDigest(names ...string) (string, error) {
	h := sha256.New()
	add := func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := embedded.ReadFile(name)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(h, "%s %d\n%s", name, len(data), data)
		return err
	}
	for _, name := range names {
		if err := fs.WalkDir(embedded, path.Join("sources", name), add); err != nil {
			return "", fmt.Errorf("reading the embedded sources: %w", err)
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// writeEmbedded writes the files below sources/<from> to the directory to, without their .txt ending.
func writeEmbedded(from, to string) error {
	root := path.Join("sources", from)
	return fs.WalkDir(embedded, root, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		target := filepath.Join(to, filepath.FromSlash(strings.TrimPrefix(name, root)))
		if entry.IsDir() {
			return os.MkdirAll(target, 0o755)
		}
		data, err := embedded.ReadFile(name)
		if err != nil {
			return err
		}
		return os.WriteFile(strings.TrimSuffix(target, ".txt"), data, 0o644)
	})
}
