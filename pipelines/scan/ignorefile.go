package scan

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// ignoreRules is the form of .trivyignore.yaml.
type ignoreRules struct {
	Vulnerabilities   []ignoreRule `yaml:"vulnerabilities"`
	Misconfigurations []ignoreRule `yaml:"misconfigurations"`
	Secrets           []ignoreRule `yaml:"secrets"`
	Licenses          []ignoreRule `yaml:"licenses"`
}

type ignoreRule struct {
	ID        string    `yaml:"id"`
	Paths     []string  `yaml:"paths"`
	PURLs     []string  `yaml:"purls"`
	ExpiredAt time.Time `yaml:"expired_at"`
	Statement string    `yaml:"statement"`
}

// checkIgnoreFile refuses what Trivy lets pass: a file that is not there, and what it does not understand, such as a
// misspelt expiry, which would make a rule hold for ever.
func checkIgnoreFile(path string) error {
	if path == "" {
		return nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("%w: ignore file: %w", ErrOptions, err)
	}
	if extension := filepath.Ext(path); extension != ".yaml" && extension != ".yml" {
		return checkIgnoreLines(path, string(data))
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	decoder.KnownFields(true)
	var rules ignoreRules
	if err := decoder.Decode(&rules); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: ignore file %s: %s", ErrOptions, path, oneLine(err))
	}
	for _, section := range [][]ignoreRule{rules.Vulnerabilities, rules.Misconfigurations, rules.Secrets, rules.Licenses} {
		for i, rule := range section {
			if rule.ID == "" {
				return fmt.Errorf("%w: ignore file %s: rule %d of a section has no id", ErrOptions, path, i+1)
			}
		}
	}
	return nil
}

// checkIgnoreLines checks the plain form: an ID in a line, with exp:<date> after it where it expires, and comments.
func checkIgnoreLines(path, content string) error {
	number := 0
	for line := range strings.Lines(content) {
		number++
		rule, _, _ := strings.Cut(line, "#")
		fields := strings.Fields(rule)
		for _, field := range fields[min(1, len(fields)):] {
			date, isExpiry := strings.CutPrefix(field, "exp:")
			if _, err := time.Parse(time.DateOnly, date); err != nil || !isExpiry {
				return fmt.Errorf("%w: ignore file %s:%d: %q after the id; only exp:YYYY-MM-DD and # comments may stand there", ErrOptions, path, number, field)
			}
		}
	}
	return nil
}
