package scangate

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Schema is the version of the report that this package reads.
const Schema = 1

// largestReport is far above any real report: a 3 GB image has a few thousand findings of some 300 bytes.
const largestReport = 64 << 20

var (
	severities   = []string{Critical, High, Medium, Low, Unknown}
	sha256Digest = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
)

// Report is scan.json. Its schema is documented with the scanner, in pipelines/scan/README.md.
type Report struct {
	Schema       int         `json:"schema"`
	Reference    string      `json:"reference"`
	Digest       string      `json:"digest"`
	StartedAt    time.Time   `json:"startedAt"`
	Seconds      float64     `json:"seconds"`
	TrivyVersion string      `json:"trivyVersion"`
	Database     Database    `json:"database"`
	Options      ScanOptions `json:"options"`
	// Packages is the number of packages that were found in the image.
	Packages   int          `json:"packages"`
	Counts     Counts       `json:"counts"`
	Findings   []Finding    `json:"findings"`
	Suppressed []Suppressed `json:"suppressed"`
}

// Database is the vulnerability database that was used.
type Database struct {
	Repository string    `json:"repository"`
	UpdatedAt  time.Time `json:"updatedAt"`
}

// ScanOptions are the scanner's options that leave findings out of the report.
type ScanOptions struct {
	Severities    []string `json:"severities"`
	IgnoreUnfixed bool     `json:"ignoreUnfixed"`
}

// Counts are numbers of findings by severity; Ignored is the number of suppressed ones, which the others do not contain.
type Counts struct {
	Critical int `json:"critical"`
	High     int `json:"high"`
	Medium   int `json:"medium"`
	Low      int `json:"low"`
	Unknown  int `json:"unknown"`
	Ignored  int `json:"ignored"`
}

// Finding is one vulnerability in one package.
type Finding struct {
	ID        string `json:"id"`
	Package   string `json:"package"`
	Installed string `json:"installed"`
	// Fixed is the version that fixes it, "" where there is none.
	Fixed    string `json:"fixed"`
	Severity string `json:"severity"`
	Title    string `json:"title"`
	// Target is the part of the image, for example the distribution or the path of the package.
	Target string `json:"target"`
}

// Suppressed is a finding that a rule took out.
type Suppressed struct {
	Finding
	// Source is the rule's file.
	Source string `json:"source"`
	// Statement is the reason that the rule gives.
	Statement string `json:"statement"`
}

// ReadReport reads and checks scan.json. Errors wrap ErrReport and name the file.
func ReadReport(path string) (Report, error) {
	file, err := os.Open(path)
	if err != nil {
		return Report{}, fmt.Errorf("%w: %w", ErrReport, err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, largestReport+1))
	if err != nil {
		return Report{}, fmt.Errorf("%w: reading %s: %w", ErrReport, path, err)
	}
	report, err := ParseReport(data)
	if err != nil {
		return Report{}, fmt.Errorf("%w: %s: %w", ErrReport, path, err)
	}
	return report, nil
}

// ParseReport is ReadReport of data. Unknown and doubled keys, trailing data, missing parts and numbers that do not add
// up are errors: a report that was cut short or edited must not look like one with fewer findings.
func ParseReport(data []byte) (Report, error) {
	if len(data) > largestReport {
		return Report{}, fmt.Errorf("it has more than %d MiB", largestReport>>20)
	}
	if err := plainJSON(data); err != nil {
		return Report{}, err
	}
	// Pointers tell a missing part from an empty one.
	var present struct {
		Schema   *int             `json:"schema"`
		Options  *json.RawMessage `json:"options"`
		Database *json.RawMessage `json:"database"`
		Counts   *json.RawMessage `json:"counts"`
		Findings *json.RawMessage `json:"findings"`
	}
	if err := json.Unmarshal(data, &present); err != nil {
		return Report{}, fmt.Errorf("it is no scan report: %w", err)
	}
	if present.Schema == nil || *present.Schema != Schema {
		return Report{}, fmt.Errorf("it is no scan report of schema %d; it must be the scan.json of greenlight-scan", Schema)
	}
	for name, part := range map[string]*json.RawMessage{"options": present.Options, "database": present.Database, "counts": present.Counts, "findings": present.Findings} {
		if part == nil {
			return Report{}, fmt.Errorf("it has no %q", name)
		}
	}
	var report Report
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&report); err != nil {
		return Report{}, fmt.Errorf("it is no scan report: %w", err)
	}
	return report, consistent(report)
}

// plainJSON refuses what two JSON parsers could read differently: keys that occur twice (also in another case, which
// encoding/json takes for the same) and data after the end.
func plainJSON(data []byte) error {
	decoder := json.NewDecoder(bytes.NewReader(data))
	var open []map[string]bool
	var keyNext []bool
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			if len(open) > 0 {
				return errors.New("it ends in the middle")
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("it is not JSON: %w", err)
		}
		top := len(open) - 1
		switch value := token.(type) {
		case json.Delim:
			switch value {
			case '{', '[':
				if top >= 0 && open[top] != nil {
					keyNext[top] = true
				}
				var keys map[string]bool
				if value == '{' {
					keys = map[string]bool{}
				}
				open, keyNext = append(open, keys), append(keyNext, value == '{')
			default:
				open, keyNext = open[:top], keyNext[:top]
			}
		default:
			if top < 0 || open[top] == nil {
				break
			}
			if !keyNext[top] {
				keyNext[top] = true
				break
			}
			key, _ := value.(string)
			folded := strings.ToLower(strings.ToUpper(key))
			if open[top][folded] {
				return fmt.Errorf("key %q occurs twice", key)
			}
			open[top][folded], keyNext[top] = true, false
		}
		if len(open) == 0 {
			if decoder.More() {
				return errors.New("something follows the report")
			}
			if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
				return errors.New("something follows the report")
			}
			return nil
		}
	}
}

// consistent checks what the types cannot.
func consistent(r Report) error {
	switch {
	case !validDigest(r.Digest):
		return fmt.Errorf("its digest %q must be sha256: and 64 hex digits", r.Digest)
	case !strings.HasSuffix(r.Reference, "@"+r.Digest):
		return fmt.Errorf("its reference %q does not end in its digest", r.Reference)
	case r.StartedAt.IsZero():
		return errors.New("it does not say when it was made")
	case r.Database.UpdatedAt.IsZero():
		return errors.New("it does not say how old its vulnerability database is")
	case len(r.Options.Severities) == 0:
		return errors.New("it does not say which severities it covers")
	}
	counted := Counts{Ignored: len(r.Suppressed)}
	for i, finding := range r.Findings {
		if finding.ID == "" || finding.Package == "" {
			return fmt.Errorf("finding %d has no id or no package", i)
		}
		if !slices.Contains(severities, finding.Severity) {
			return fmt.Errorf("finding %d has severity %q; known: %s", i, finding.Severity, strings.Join(severities, ", "))
		}
		counted.add(finding.Severity)
	}
	if counted != r.Counts {
		return fmt.Errorf("its counts %+v do not match its findings %+v", r.Counts, counted)
	}
	return nil
}

func validDigest(digest string) bool { return sha256Digest.MatchString(digest) }

func rank(severity string) int { return slices.Index(severities, severity) }

func (c *Counts) field(severity string) *int {
	switch severity {
	case Critical:
		return &c.Critical
	case High:
		return &c.High
	case Medium:
		return &c.Medium
	case Low:
		return &c.Low
	}
	return &c.Unknown
}

func (c *Counts) add(severity string) { *c.field(severity)++ }

func (c Counts) of(severity string) int { return *c.field(severity) }
