package engine

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// writeProxy makes a module proxy in the directory proxy from the downloads of a module cache, and takes the zip files
// over. Its lists offer the versions that are there and nothing newer, so that `go get -u` finds what it has. libCommit
// is answered as release libVersion of the Go library.
func writeProxy(downloads, proxy, libVersion, libCommit string) error {
	versions := map[string][]string{}
	err := filepath.WalkDir(downloads, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(downloads, path)
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if rel == "sumdb" {
				return fs.SkipDir
			}
			return nil
		}
		dir, name := filepath.Split(rel)
		if filepath.Base(dir) != "@v" {
			return nil
		}
		target := filepath.Join(proxy, dir)
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
		switch filepath.Ext(name) {
		case ".zip":
			return os.Rename(path, filepath.Join(target, name))
		case ".mod":
			versions[dir] = append(versions[dir], strings.TrimSuffix(name, ".mod"))
			return copyFile(path, filepath.Join(target, name))
		}
		return nil
	})
	if err != nil {
		return err
	}
	for dir, have := range versions {
		sort.Strings(have)
		for _, version := range have {
			if err := writeInfo(filepath.Join(proxy, dir), version, version); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(proxy, dir, "list"), []byte(strings.Join(have, "\n")+"\n"), 0o644); err != nil {
			return err
		}
	}
	library := filepath.Join(proxy, "dagger.io/dagger/@v")
	if _, err := os.Stat(filepath.Join(library, libVersion+".zip")); err != nil {
		return fmt.Errorf("the Go library %s was not downloaded: %w", libVersion, err)
	}
	return writeInfo(library, libCommit, libVersion)
}

func writeInfo(dir, query, version string) error {
	data, err := json.Marshal(struct{ Version string }{version})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, query+".info"), data, 0o644)
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o644)
}
