package scan

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Schema is the version of scan.json that this package writes. It changes when a reader of the old one could be misled.
const Schema = 1

// Report is scan.json; README.md documents it for its readers.
type Report struct {
	// Schema is 1.
	Schema int `json:"schema"`
	// Reference is the image that was scanned, by digest, and Digest its digest alone.
	Reference string `json:"reference"`
	Digest    string `json:"digest"`
	// StartedAt is when the scan began, and Seconds how long it took in all.
	StartedAt time.Time `json:"startedAt"`
	Seconds   float64   `json:"seconds"`
	// TrivyVersion is the version of the scanner.
	TrivyVersion string `json:"trivyVersion"`
	// Database is the vulnerability database that was used.
	Database Database `json:"database"`
	// Options are those that leave findings out.
	Options ScanOptions `json:"options"`
	// Packages is the number of packages that were found in the image; 0 means that there was nothing to look up.
	Packages int `json:"packages"`
	// Counts are the numbers of findings by severity, and of suppressed ones.
	Counts Counts `json:"counts"`
	// Findings, the worst first.
	Findings []Finding `json:"findings"`
	// Suppressed are the findings that the ignore file took out.
	Suppressed []Suppressed `json:"suppressed"`
}

// Database is the vulnerability database that was used.
type Database struct {
	// Repository served it; empty for a database that was put into the cache by hand.
	Repository string `json:"repository"`
	// UpdatedAt is when its contents were brought up to date.
	UpdatedAt time.Time `json:"updatedAt"`
}

// ScanOptions are the options that leave findings out of the report.
type ScanOptions struct {
	// Severities that the report covers.
	Severities []string `json:"severities"`
	// IgnoreUnfixed is true if findings without a fixed version were left out.
	IgnoreUnfixed bool `json:"ignoreUnfixed"`
}

// Counts are numbers of findings; Ignored counts the suppressed ones, which the others do not contain.
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
	// ID is the vulnerability's, such as CVE-2024-3094.
	ID string `json:"id"`
	// Package is the name of the package and Installed its version in the image.
	Package   string `json:"package"`
	Installed string `json:"installed"`
	// Fixed is the version that fixes it (several with commas), "" where there is none.
	Fixed string `json:"fixed"`
	// Severity is CRITICAL, HIGH, MEDIUM, LOW or UNKNOWN.
	Severity string `json:"severity"`
	// Title says in a few words what is wrong.
	Title string `json:"title"`
	// Target is where the package is: the distribution, or the path of the file that names it.
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

// finish sorts the findings, drops doubles and counts.
func (r *Report) finish() {
	slices.SortFunc(r.Findings, compareFindings)
	r.Findings = slices.Compact(r.Findings)
	slices.SortFunc(r.Suppressed, func(a, b Suppressed) int { return compareFindings(a.Finding, b.Finding) })
	r.Suppressed = slices.CompactFunc(r.Suppressed, func(a, b Suppressed) bool { return a.Finding == b.Finding })
	r.Counts = Counts{Ignored: len(r.Suppressed)}
	for _, finding := range r.Findings {
		switch finding.Severity {
		case "CRITICAL":
			r.Counts.Critical++
		case "HIGH":
			r.Counts.High++
		case "MEDIUM":
			r.Counts.Medium++
		case "LOW":
			r.Counts.Low++
		default:
			r.Counts.Unknown++
		}
	}
	// Readers are promised lists.
	if r.Findings == nil {
		r.Findings = []Finding{}
	}
	if r.Suppressed == nil {
		r.Suppressed = []Suppressed{}
	}
}

func compareFindings(a, b Finding) int {
	return cmp.Or(
		slices.Index(severities, a.Severity)-slices.Index(severities, b.Severity),
		strings.Compare(a.Package, b.Package),
		strings.Compare(a.ID, b.ID),
		strings.Compare(a.Installed, b.Installed),
		strings.Compare(a.Target, b.Target),
		strings.Compare(a.Fixed, b.Fixed),
		strings.Compare(a.Title, b.Title),
	)
}

// String is the report in a line.
func (r Report) String() string {
	c := r.Counts
	return fmt.Sprintf("%s: %d critical, %d high, %d medium, %d low, %d unknown, %d ignored; %d packages, database of %s, %.1f s",
		r.Reference, c.Critical, c.High, c.Medium, c.Low, c.Unknown, c.Ignored, r.Packages, r.Database.UpdatedAt.Format(time.DateOnly), r.Seconds)
}

func writeJSON(path string, value any) error {
	data, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return writeFile(path, append(data, '\n'))
}

// writeFile writes a whole file or none.
func writeFile(path string, data []byte) error {
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	defer os.Remove(file.Name())
	_, err = file.Write(data)
	if err == nil {
		err = file.Chmod(0o644)
	}
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}
