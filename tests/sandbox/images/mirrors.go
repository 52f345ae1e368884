package images

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// mirrors are the places that packages of a Debian release come from.
type mirrors struct {
	// Main has the release and its updates, Security the security updates. Security may be empty.
	Main, Security string
}

// sources returns the apt source lines for suite. With no mirror it returns none: mmdebstrap then uses its own default.
func (m mirrors) sources(suite string) []string {
	if m.Main == "" {
		return nil
	}
	lines := []string{
		fmt.Sprintf("deb [signed-by=%s] %s %s main", keyring, m.Main, suite),
		fmt.Sprintf("deb [signed-by=%s] %s %s-updates main", keyring, m.Main, suite),
	}
	if m.Security != "" {
		lines = append(lines, fmt.Sprintf("deb [signed-by=%s] %s %s-security main", keyring, m.Security, suite))
	}
	return lines
}

// hostMirrors finds the mirrors that the host itself uses: those of the entries for its own release under etcApt. A host
// that is no Debian has none.
func hostMirrors(etcApt, osRelease string) (mirrors, error) {
	release, err := osReleaseFields(osRelease)
	if err != nil {
		return mirrors{}, err
	}
	if release["ID"] != "debian" || release["VERSION_CODENAME"] == "" {
		return mirrors{}, nil
	}
	files := []string{filepath.Join(etcApt, "sources.list")}
	for _, pattern := range []string{"*.list", "*.sources"} {
		found, err := filepath.Glob(filepath.Join(etcApt, "sources.list.d", pattern))
		if err != nil {
			return mirrors{}, err
		}
		files = append(files, found...)
	}
	var m mirrors
	for _, file := range files {
		data, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return mirrors{}, fmt.Errorf("reading the host's apt sources: %w", err)
		}
		parse := parseOneLine
		if strings.HasSuffix(file, ".sources") {
			parse = parseDeb822
		}
		for _, e := range parse(string(data)) {
			switch {
			// Other methods (cdrom, file, mirror lists) name things of the host that a new root does not see.
			case !strings.HasPrefix(e.uri, "http://") && !strings.HasPrefix(e.uri, "https://"):
			case m.Main == "" && e.suite == release["VERSION_CODENAME"]:
				m.Main = e.uri
			case m.Security == "" && e.suite == release["VERSION_CODENAME"]+"-security":
				m.Security = e.uri
			}
		}
	}
	return m, nil
}

// entry is one URI and suite of an apt source for binary packages with the component main.
type entry struct{ uri, suite string }

func parseOneLine(text string) []entry {
	var out []entry
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		// Options stand in brackets and may hold spaces.
		if open := strings.Index(line, "["); open >= 0 {
			if end := strings.Index(line[open:], "]"); end >= 0 {
				line = line[:open] + line[open+end+1:]
			}
		}
		fields := strings.Fields(line)
		if len(fields) < 4 || fields[0] != "deb" || !contains(fields[3:], "main") {
			continue
		}
		out = append(out, entry{fields[1], fields[2]})
	}
	return out
}

func parseDeb822(text string) []entry {
	var (
		out    []entry
		stanza = map[string]string{}
		last   string
	)
	end := func() {
		if contains(strings.Fields(stanza["types"]), "deb") && contains(strings.Fields(stanza["components"]), "main") &&
			!strings.EqualFold(strings.TrimSpace(stanza["enabled"]), "no") {
			for _, uri := range strings.Fields(stanza["uris"]) {
				for _, suite := range strings.Fields(stanza["suites"]) {
					out = append(out, entry{uri, suite})
				}
			}
		}
		clear(stanza)
	}
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		switch {
		case strings.HasPrefix(line, "#"):
		case strings.TrimSpace(line) == "":
			end()
		case line[0] == ' ' || line[0] == '\t':
			stanza[last] += " " + line
		default:
			key, value, _ := strings.Cut(line, ":")
			last = strings.ToLower(strings.TrimSpace(key))
			stanza[last] = value
		}
	}
	end()
	return out
}

func osReleaseFields(path string) (map[string]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading the host's release: %w", err)
	}
	defer f.Close()
	out := map[string]string{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if key, value, ok := strings.Cut(lines.Text(), "="); ok {
			out[key] = strings.Trim(value, `"'`)
		}
	}
	return out, lines.Err()
}

func contains(list []string, want string) bool {
	for _, s := range list {
		if s == want {
			return true
		}
	}
	return false
}
