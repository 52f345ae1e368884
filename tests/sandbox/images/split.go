package images

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
)

func architecture() string { return runtime.GOARCH }

// splitRootfs turns a Debian root file system in a tar file into one layer with the packages in first and all they need,
// and, if there is more, a second one with that. Changelogs are moved out to dir/changelogs, other documentation but
// copyright files is dropped.
func splitRootfs(ctx context.Context, dir, tarball string, first []string) ([]*layer, error) {
	packages, lists, err := readDpkg(tarball)
	if err != nil {
		return nil, err
	}
	below := closure(packages, first)
	layers := 1
	if len(below) < len(packages) {
		layers = 2
	}
	layerOf := map[string]int{}
	for name, list := range lists {
		if below[name] {
			continue
		}
		for _, file := range list {
			layerOf[merged(file)] = 1
		}
	}
	// A path in both belongs to the lower layer: directories that packages share.
	for name, list := range lists {
		if below[name] {
			for _, file := range list {
				delete(layerOf, merged(file))
			}
		}
	}

	changelogs := filepath.Join(dir, "changelogs")
	if err := os.MkdirAll(changelogs, 0o755); err != nil {
		return nil, err
	}
	writers := make([]*layerWriter, layers)
	for i := range writers {
		if writers[i], err = newLayer(dir); err != nil {
			return nil, err
		}
	}
	err = eachEntry(ctx, tarball, func(h *tar.Header, r io.Reader) error {
		name := clean(h.Name)
		if docs, ok := strings.CutPrefix(name, "/usr/share/doc/"); ok && h.Typeflag != tar.TypeDir {
			if pkg, base := path.Split(docs); base == "changelog.Debian.gz" || base == "changelog.gz" {
				return keepChangelog(changelogs, strings.TrimSuffix(pkg, "/"), base, h, r)
			} else if base != "copyright" && h.Typeflag != tar.TypeSymlink {
				return nil
			}
		}
		if transient(name, h.Typeflag) || name == certificateTool {
			return nil
		}
		i := 0
		if layers > 1 {
			i = placeOf(layerOf, name, h)
			// Hard links must be where their target is.
			layerOf[name] = i
		}
		h.Uname, h.Gname, h.Format = "", "", tar.FormatPAX
		// Nobody changes users in these containers: a program that could would only serve an intruder.
		if h.Typeflag == tar.TypeReg {
			h.Mode &^= 0o6000
		}
		h.AccessTime, h.ChangeTime = h.ModTime, h.ModTime
		if err := writers[i].WriteHeader(h); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		_, err := io.Copy(writers[i], r)
		return err
	})
	out := make([]*layer, 0, layers)
	for _, w := range writers {
		l, e := w.finish(err)
		if e != nil && err == nil {
			err = e
		}
		out = append(out, l)
	}
	if err != nil {
		return nil, fmt.Errorf("splitting the root file system: %w", err)
	}
	return out, nil
}

func placeOf(layerOf map[string]int, name string, h *tar.Header) int {
	switch {
	case h.Typeflag == tar.TypeDir:
		return 0
	case h.Typeflag == tar.TypeLink:
		return layerOf[clean(h.Linkname)]
	}
	if i, ok := layerOf[name]; ok {
		return i
	}
	// Byte code is made at installation and belongs to no package: it goes with its source.
	if cached, file := path.Split(name); strings.HasSuffix(cached, "/__pycache__/") {
		module, _, _ := strings.Cut(file, ".")
		return layerOf[path.Join(path.Dir(strings.TrimSuffix(cached, "/")), module+".py")]
	}
	return 0
}

// certificateTool is what Dagger runs before and after every command in a Debian container on a host with certificates of
// its own, at 2 CPU-seconds each time. Without it, Dagger appends the host's certificates to the bundle itself.
const certificateTool = "/usr/sbin/update-ca-certificates"

// transient says whether a file is left over from the installation, or of no use after it.
func transient(name string, kind byte) bool {
	if kind == tar.TypeDir {
		return false
	}
	for _, prefix := range []string{"/var/cache/", "/var/lib/apt/lists/", "/var/log/", "/tmp/", "/var/tmp/", "/dev/", "/run/"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	// Packages' own tests; they cannot be excluded before, since the installation compiles them.
	if modules, ok := strings.CutPrefix(name, "/usr/lib/python3/dist-packages/"); ok && strings.Contains(modules, "/tests/") {
		return true
	}
	return name == "/etc/hostname" || name == "/etc/resolv.conf" || name == "/etc/machine-id" ||
		strings.HasPrefix(name, "/var/lib/dpkg/") && strings.HasSuffix(name, "-old")
}

func keepChangelog(dir, pkg, base string, h *tar.Header, r io.Reader) error {
	target := filepath.Join(dir, filepath.Base(pkg)+".gz")
	// A package with both has the upstream project's changes in changelog.gz.
	if base == "changelog.gz" {
		if _, err := os.Stat(target); err == nil {
			return nil
		}
	}
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	return os.WriteFile(target, data, 0o644)
}

// eachEntry calls fn for every entry of a tar file.
func eachEntry(ctx context.Context, tarball string, fn func(h *tar.Header, r io.Reader) error) error {
	f, err := os.Open(tarball)
	if err != nil {
		return err
	}
	defer f.Close()
	in := tar.NewReader(bufio.NewReaderSize(f, 1<<20))
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := fn(h, in); err != nil {
			return err
		}
	}
}

// debianPackage is an installed package, as far as the layers need it.
type debianPackage struct {
	depends  []string
	provides []string
	needed   bool // essential or required: there always
}

// readDpkg reads the package database in a tar file: packages by name, and the files of each.
func readDpkg(tarball string) (map[string]debianPackage, map[string][]string, error) {
	var status []byte
	lists := map[string][]string{}
	err := eachEntry(context.Background(), tarball, func(h *tar.Header, r io.Reader) error {
		name := clean(h.Name)
		if name == "/var/lib/dpkg/status" {
			data, err := io.ReadAll(r)
			status = data
			return err
		}
		if file, ok := strings.CutPrefix(name, "/var/lib/dpkg/info/"); ok && strings.HasSuffix(file, ".list") {
			data, err := io.ReadAll(r)
			pkg, _, _ := strings.Cut(strings.TrimSuffix(file, ".list"), ":")
			lists[pkg] = strings.Split(strings.TrimSpace(string(data)), "\n")
			return err
		}
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("reading the package database: %w", err)
	}
	if status == nil {
		return nil, nil, errors.New("reading the package database: there is none in the root file system")
	}
	return parseStatus(status), lists, nil
}

func parseStatus(status []byte) map[string]debianPackage {
	out := map[string]debianPackage{}
	for stanza := range bytes.SplitSeq(status, []byte("\n\n")) {
		fields := map[string]string{}
		for line := range strings.Lines(string(stanza)) {
			if key, value, ok := strings.Cut(line, ":"); ok && line[0] != ' ' {
				fields[key] = strings.TrimSpace(value)
			}
		}
		if fields["Package"] == "" {
			continue
		}
		out[fields["Package"]] = debianPackage{
			depends:  relations(fields["Pre-Depends"] + "," + fields["Depends"]),
			provides: relations(fields["Provides"]),
			needed:   fields["Essential"] == "yes" || fields["Priority"] == "required",
		}
	}
	return out
}

// relations returns the names in a dependency field, those of alternatives too.
func relations(field string) []string {
	var out []string
	for _, part := range strings.FieldsFunc(field, func(r rune) bool { return r == ',' || r == '|' }) {
		name, _, _ := strings.Cut(strings.TrimSpace(part), " ")
		name, _, _ = strings.Cut(name, ":")
		if name != "" {
			out = append(out, name)
		}
	}
	return out
}

// closure returns the packages that are always there, those in first, and all that these depend on.
func closure(packages map[string]debianPackage, first []string) map[string]bool {
	providers := map[string][]string{}
	var todo []string
	for name, p := range packages {
		for _, virtual := range p.provides {
			providers[virtual] = append(providers[virtual], name)
		}
		if p.needed {
			todo = append(todo, name)
		}
	}
	todo = append(todo, first...)
	in := map[string]bool{}
	for len(todo) > 0 {
		name := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if in[name] {
			continue
		}
		p, ok := packages[name]
		if !ok {
			todo = append(todo, providers[name]...)
			continue
		}
		in[name] = true
		todo = append(todo, p.depends...)
	}
	return in
}

func clean(name string) string { return path.Clean("/" + name) }

// merged maps a path to where it is on a system with a merged /usr.
func merged(name string) string {
	name = path.Clean(name)
	for _, top := range []string{"/bin/", "/sbin/", "/lib/", "/lib64/"} {
		if strings.HasPrefix(name, top) {
			return "/usr" + name
		}
	}
	return name
}
