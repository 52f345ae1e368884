// Package scangate judges a scan: it reads the report that greenlight-scan wrote and says whether the image may be
// released. A report that is about another image, too old, or not whole is an error and never a pass.
package scangate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

var (
	// ErrRejected is wrapped by the error that Run returns when the gate says no.
	ErrRejected = errors.New("scan gate says no")
	// ErrReport is wrapped by errors about a report that cannot be judged: missing, malformed, stale, about another image
	// or made with options that hide what the gate has to see.
	ErrReport = errors.New("scan report cannot be used")
	// ErrOptions is wrapped by errors about the gate's own options.
	ErrOptions = errors.New("invalid scan gate option")
)

// Severities from worst to unknown.
const (
	Critical = "CRITICAL"
	High     = "HIGH"
	Medium   = "MEDIUM"
	Low      = "LOW"
	Unknown  = "UNKNOWN"
)

// Options says which report to judge and how.
type Options struct {
	// ReportFile is scan.json as greenlight-scan writes it.
	ReportFile string `json:"reportFile"`
	// Digest of the image that is to be released; the report must be about it.
	Digest string `json:"digest"`
	// FailSeverities are the severities of which no finding is allowed. Default (nil): CRITICAL. Empty but not nil: all
	// findings are allowed, the report must still be good.
	FailSeverities []string `json:"failSeverities"`
	// FixableOnly counts only findings for which a fixed version exists. Default false.
	FixableOnly bool `json:"fixableOnly,omitempty"`
	// MaxAge is how old the report may be. Default 24h.
	MaxAge time.Duration `json:"maxAge,omitempty"`
	// MaxDatabaseAge is how old the vulnerability database may have been when it was used. Default: not judged here,
	// because the scanner refuses old databases itself.
	MaxDatabaseAge time.Duration `json:"maxDatabaseAge,omitempty"`
	// Now is the time to judge by. Default: the present.
	Now time.Time `json:"now,omitzero"`
}

// Result is the verdict.
type Result struct {
	// Passed is true if the image may be released.
	Passed bool `json:"passed"`
	// Reason is one line: why not, or what was found and allowed.
	Reason string `json:"reason"`
	// Reference and Digest are of the scanned image.
	Reference string `json:"reference"`
	Digest    string `json:"digest"`
	// Counts are the numbers of findings by severity, before thresholds.
	Counts Counts `json:"counts"`
	// Failing are the findings that are too many, the worst first.
	Failing []Finding `json:"failing,omitempty"`
	// DatabaseUpdatedAt says how recent the vulnerability database was.
	DatabaseUpdatedAt time.Time `json:"databaseUpdatedAt,omitzero"`
	// ScannedAt is when the scan began, ScanSeconds how long it took.
	ScannedAt   time.Time `json:"scannedAt,omitzero"`
	ScanSeconds float64   `json:"scanSeconds"`
}

// named is how many findings the reason names.
const named = 3

// clockSkew is how far in the future a report may seem to be made: scanner and gate may run on two machines.
const clockSkew = 5 * time.Minute

// Run judges the report. It returns the result with an error that wraps ErrRejected when the gate says no, and an error
// that wraps ErrReport or ErrOptions, with no result, when there is nothing to judge.
func Run(_ context.Context, o Options) (Result, error) {
	o, err := withDefaults(o)
	if err != nil {
		return Result{}, err
	}
	report, err := ReadReport(o.ReportFile)
	if err != nil {
		return Result{}, err
	}
	if err := usable(report, o); err != nil {
		return Result{}, fmt.Errorf("%w: %s: %w", ErrReport, o.ReportFile, err)
	}
	result := Result{
		Reference:         report.Reference,
		Digest:            report.Digest,
		Counts:            report.Counts,
		DatabaseUpdatedAt: report.Database.UpdatedAt,
		ScannedAt:         report.StartedAt,
		ScanSeconds:       report.Seconds,
	}
	for _, finding := range report.Findings {
		if slices.Contains(o.FailSeverities, finding.Severity) && (finding.Fixed != "" || !o.FixableOnly) {
			result.Failing = append(result.Failing, finding)
		}
	}
	slices.SortStableFunc(result.Failing, func(a, b Finding) int { return rank(a.Severity) - rank(b.Severity) })
	if len(result.Failing) > 0 {
		result.Reason = reason(result.Failing)
		return result, fmt.Errorf("%w: %s", ErrRejected, result.Reason)
	}
	result.Passed = true
	result.Reason = allowed(report.Counts, o)
	return result, nil
}

func withDefaults(o Options) (Options, error) {
	if o.ReportFile == "" {
		return o, fmt.Errorf("%w: no report file", ErrOptions)
	}
	if !validDigest(o.Digest) {
		return o, fmt.Errorf("%w: digest %q must be sha256: and 64 hex digits", ErrOptions, o.Digest)
	}
	if o.FailSeverities == nil {
		o.FailSeverities = []string{Critical}
	}
	for _, severity := range o.FailSeverities {
		if !slices.Contains(severities, severity) {
			return o, fmt.Errorf("%w: severity %q is unknown; known: %s", ErrOptions, severity, strings.Join(severities, ", "))
		}
	}
	if o.MaxAge < 0 || o.MaxDatabaseAge < 0 {
		return o, fmt.Errorf("%w: an age limit must not be negative", ErrOptions)
	}
	if o.MaxAge == 0 {
		o.MaxAge = 24 * time.Hour
	}
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	return o, nil
}

// usable checks that the report answers the question that is asked.
func usable(report Report, o Options) error {
	if report.Digest != o.Digest {
		return fmt.Errorf("it is about %s, not about %s; scan the image that is to be released", report.Digest, o.Digest)
	}
	if age := o.Now.Sub(report.StartedAt); age > o.MaxAge {
		return fmt.Errorf("it is %s old, more than the %s allowed; scan again", age.Round(time.Minute), o.MaxAge)
	} else if age < -clockSkew {
		return fmt.Errorf("it says it was made at %s, which is in the future; check the clocks", report.StartedAt.Format(time.RFC3339))
	}
	if limit := o.MaxDatabaseAge; limit > 0 {
		if age := report.StartedAt.Sub(report.Database.UpdatedAt); age > limit {
			return fmt.Errorf("its vulnerability database was %s old, more than the %s allowed; update it and scan again", age.Round(time.Hour), limit)
		}
	}
	for _, severity := range o.FailSeverities {
		if !slices.Contains(report.Options.Severities, severity) {
			return fmt.Errorf("the scan left %s findings out; scan with --severity %s", severity, strings.Join(o.FailSeverities, ","))
		}
	}
	if report.Options.IgnoreUnfixed && !o.FixableOnly && len(o.FailSeverities) > 0 {
		return errors.New("the scan left findings without a fix out; scan without --ignore-unfixed")
	}
	return nil
}

// reason is one line: how many of what, and the worst by name.
func reason(failing []Finding) string {
	var groups []string
	for _, severity := range severities {
		if n := countOf(failing, severity); n > 0 {
			groups = append(groups, fmt.Sprintf("%d %s", n, severity))
		}
	}
	var worst []string
	for _, finding := range failing[:min(named, len(failing))] {
		worst = append(worst, describe(finding))
	}
	line := strings.Join(groups, ", ") + ": " + strings.Join(worst, "; ")
	if more := len(failing) - named; more > 0 {
		line += fmt.Sprintf("; and %d more", more)
	}
	return line
}

func describe(f Finding) string {
	fix := "no fix yet"
	if f.Fixed != "" {
		fix = "fixed in " + f.Fixed
	}
	return oneLine(fmt.Sprintf("%s in %s %s (%s)", f.ID, f.Package, f.Installed, fix))
}

// allowed says what was found and let through.
func allowed(c Counts, o Options) string {
	var parts []string
	for _, severity := range severities {
		if n := c.of(severity); n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, severity))
		}
	}
	if len(parts) == 0 {
		parts = []string{"none"}
	}
	line := "findings: " + strings.Join(parts, ", ")
	if c.Ignored > 0 {
		line += fmt.Sprintf(" (%d more ignored by rule)", c.Ignored)
	}
	if len(o.FailSeverities) == 0 {
		return line + "; none is forbidden"
	}
	forbidden := strings.Join(o.FailSeverities, ", ")
	if o.FixableOnly {
		forbidden += " with a fix"
	}
	return line + "; forbidden: " + forbidden
}

func countOf(findings []Finding, severity string) int {
	n := 0
	for _, finding := range findings {
		if finding.Severity == severity {
			n++
		}
	}
	return n
}

// oneLine keeps text from a report from breaking the line or the terminal.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == 0x2028 || r == 0x2029 {
			return ' '
		}
		return r
	}, text)
}
