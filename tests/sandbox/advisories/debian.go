package advisories

import (
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// DebianSource is a place with changelogs of the packages of a Debian release.
type DebianSource struct {
	// Release is the major version, such as "13".
	Release string
	// Pattern is a glob of gzip-compressed changelogs in Debian's format. Files in another format are skipped.
	Pattern string
}

// HostSource is the running system's own packages, and false where that is no Debian.
func HostSource() (DebianSource, bool) {
	data, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return DebianSource{}, false
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(data)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			fields[key] = strings.Trim(value, `"`)
		}
	}
	if fields["ID"] != "debian" || fields["VERSION_ID"] == "" {
		return DebianSource{}, false
	}
	return DebianSource{Release: fields["VERSION_ID"], Pattern: "/usr/share/doc/*/changelog.Debian.gz"}, true
}

// fix says that a version of a source package fixes a CVE.
type fix struct {
	Source, CVE, Version string
}

// releaseFixes are the fixes in a release, sorted.
type releaseFixes struct {
	Release string
	Fixes   []fix
}

func readDebian(sources []DebianSource) ([]releaseFixes, error) {
	found := map[string]map[fix]bool{}
	for _, s := range sources {
		if found[s.Release] == nil {
			found[s.Release] = map[fix]bool{}
		}
		files, err := filepath.Glob(s.Pattern)
		if err != nil {
			return nil, fmt.Errorf("reading changelogs of Debian %s: %w", s.Release, err)
		}
		for _, file := range files {
			fixes, err := readChangelog(file)
			if err != nil {
				return nil, fmt.Errorf("reading changelogs of Debian %s: %w", s.Release, err)
			}
			for _, f := range fixes {
				found[s.Release][f] = true
			}
		}
	}
	out := make([]releaseFixes, 0, len(found))
	for release, set := range found {
		r := releaseFixes{Release: release}
		for f := range set {
			r.Fixes = append(r.Fixes, f)
		}
		slices.SortFunc(r.Fixes, func(a, b fix) int {
			return strings.Compare(a.Source+" "+a.CVE+" "+a.Version, b.Source+" "+b.CVE+" "+b.Version)
		})
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b releaseFixes) int { return strings.Compare(a.Release, b.Release) })
	return out, nil
}

// fingerprint changes when any of the changelogs does; it is much cheaper than to read them.
func fingerprint(sources []DebianSource) (string, error) {
	var b strings.Builder
	for _, s := range sources {
		files, err := filepath.Glob(s.Pattern)
		if err != nil {
			return "", fmt.Errorf("looking for changelogs of Debian %s: %w", s.Release, err)
		}
		for _, file := range files {
			if info, err := os.Stat(file); err == nil {
				fmt.Fprintf(&b, "%s %s %d %d\n", s.Release, file, info.Size(), info.ModTime().UnixNano())
			}
		}
	}
	return b.String(), nil
}

func readChangelog(path string) ([]fix, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		// A link to the documentation of a package that is not there.
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	fixes, err := parseChangelog(z)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return fixes, nil
}

// A changelog's entries start with "source (version) distributions; metadata" at the left margin.
var entryLine = regexp.MustCompile(`^([a-z0-9][a-z0-9+.-]+) \(([0-9][A-Za-z0-9.+:~-]*)\) [^;]+;`)

var cveID = regexp.MustCompile(`\bCVE-[12][0-9]{3}-[0-9]{4,7}\b`)

// Entries mention CVEs for other reasons than having fixed them.
var noFix = regexp.MustCompile(`(?i)\b(not[ -](yet )?(affected|vulnerable|fixed)|unaffected|does(n't| not) (affect|apply)|unfixed|revert(s|ed)?)\b`)

// parseChangelog reads a Debian changelog, newest entry first as they all are, and returns for each CVE the oldest
// version whose entry says that it is fixed. Text in another format has no entries and so gives nothing.
func parseChangelog(r io.Reader) ([]fix, error) {
	var (
		out     []fix
		at      = map[string]int{}
		source  string
		version string
	)
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		if m := entryLine.FindStringSubmatch(line); m != nil {
			version = m[2]
			if source == "" {
				source = m[1]
			}
			// Before it was renamed, the package was another one with another history.
			if m[1] != source {
				version = ""
			}
		} else if version != "" && strings.HasPrefix(line, " ") && !strings.HasPrefix(line, " -- ") && !noFix.MatchString(line) {
			for _, cve := range cveID.FindAllString(line, -1) {
				f := fix{Source: source, CVE: cve, Version: version}
				if i, seen := at[cve]; seen {
					out[i] = f
					continue
				}
				at[cve] = len(out)
				out = append(out, f)
			}
		}
		if err != nil {
			return out, nil
		}
	}
}
