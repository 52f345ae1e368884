// Package report is the record of one release, for machines (JSON) and for people (Markdown, HTML).
package report

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	htmltemplate "html/template"
	"os"
	"path/filepath"
	"strings"
	"text/template"
	"time"
)

// Status is how a release ended.
type Status string

// The ends of a release.
const (
	// Released: the candidate serves and the previous version is down.
	Released Status = "released"
	// Rejected: a gate said no; live was not touched.
	Rejected Status = "rejected"
	// RolledBack: traffic went to the candidate and came back.
	RolledBack Status = "rolled-back"
	// Failed: something other than the candidate went wrong; live serves as before.
	Failed Status = "failed"
)

// Report is report.json. Its fields are a contract; times are RFC 3339 in UTC, latencies in milliseconds.
type Report struct {
	ID      string `json:"id"`
	Service string `json:"service"`
	Version string `json:"version"`
	Image   string `json:"image"`
	Digest  string `json:"digest"`
	Status  Status `json:"status"`
	// Reason is one line that says why, when Status is not released.
	Reason string  `json:"reason"`
	Stages []Stage `json:"stages"`
	// Switch is null when the release ended before it.
	Switch *Switch `json:"switch"`
	// Latency is null when the gate did not run.
	Latency *Latency `json:"latency"`
	// Scan is null when there was none.
	Scan *Scan `json:"scan"`
	// GPUSecondsDoubled is how many GPU-seconds the second colour held while there were two.
	GPUSecondsDoubled float64 `json:"gpuSecondsDoubled"`
	// Live is what serves at the end; empty when nothing does.
	Live Live `json:"live"`
}

// StageStatus is how a stage ended.
type StageStatus string

// The ends of a stage.
const (
	Passed      StageStatus = "passed"
	StageNo     StageStatus = "rejected"
	StageFailed StageStatus = "failed"
	Skipped     StageStatus = "skipped"
)

// Stage is one line of the plan.
type Stage struct {
	Name      string      `json:"name"`
	Status    StageStatus `json:"status"`
	StartedAt time.Time   `json:"startedAt"`
	Seconds   float64     `json:"seconds"`
	Detail    string      `json:"detail"`
}

// Switch is what the release itself saw on the live Service from just before the switch to the end of the bake.
type Switch struct {
	Router   string `json:"router"`
	Requests int    `json:"requests"`
	Failed   int    `json:"failed"`
	// Seconds from the command to the last new connection that the previous colour answered.
	Seconds float64 `json:"seconds"`
}

// Latency is the outcome of the latency gate.
type Latency struct {
	// Live is null when nothing was live.
	Live      *Percentiles `json:"live"`
	Candidate Percentiles  `json:"candidate"`
	Samples   int          `json:"samples"`
	Decision  string       `json:"decision"`
}

// Percentiles are in milliseconds.
type Percentiles struct {
	P50 float64 `json:"p50"`
	P95 float64 `json:"p95"`
	P99 float64 `json:"p99"`
}

// Scan counts the findings by severity.
type Scan struct {
	Critical int `json:"critical"`
	High     int `json:"high"`
	Medium   int `json:"medium"`
	Low      int `json:"low"`
	Ignored  int `json:"ignored"`
}

// Live is what serves.
type Live struct {
	Colour  string `json:"colour"`
	Version string `json:"version"`
	Image   string `json:"image"`
}

//go:embed report.md.tmpl report.html.tmpl
var templates embed.FS

// Write puts report.json, report.md and report.html into dir, each whole or not at all.
func (r *Report) Write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	markdown, err := r.Markdown()
	if err != nil {
		return err
	}
	html, err := r.HTML()
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{"report.json": append(data, '\n'), "report.md": markdown, "report.html": html} {
		temporary := filepath.Join(dir, "."+name)
		if err := os.WriteFile(temporary, content, 0o644); err != nil {
			return fmt.Errorf("writing the report: %w", err)
		}
		if err := os.Rename(temporary, filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("writing the report: %w", err)
		}
	}
	return nil
}

// Read reads a report.json.
func Read(path string) (*Report, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the report: %w", err)
	}
	r := &Report{}
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("reading the report %s: %w", path, err)
	}
	return r, nil
}

// Markdown is the report for a job summary or a merge request.
func (r *Report) Markdown() ([]byte, error) {
	t, err := template.New("report.md.tmpl").Funcs(template.FuncMap{"cell": cell, "seconds": seconds, "ms": milliseconds}).ParseFS(templates, "report.md.tmpl")
	if err != nil {
		return nil, fmt.Errorf("rendering the report: %w", err)
	}
	var out bytes.Buffer
	if err := t.Execute(&out, r); err != nil {
		return nil, fmt.Errorf("rendering the report: %w", err)
	}
	return out.Bytes(), nil
}

// HTML is the report as one page without scripts or outside resources.
func (r *Report) HTML() ([]byte, error) {
	t, err := htmltemplate.New("report.html.tmpl").Funcs(htmltemplate.FuncMap{"seconds": seconds, "ms": milliseconds}).ParseFS(templates, "report.html.tmpl")
	if err != nil {
		return nil, fmt.Errorf("rendering the report: %w", err)
	}
	var out bytes.Buffer
	if err := t.Execute(&out, r); err != nil {
		return nil, fmt.Errorf("rendering the report: %w", err)
	}
	return out.Bytes(), nil
}

// cell makes text safe for one cell of a Markdown table: details quote answers and logs of the candidate.
func cell(s any) string {
	return strings.NewReplacer("|", "\\|", "\n", " ", "\r", " ", "<", "&lt;", ">", "&gt;", "`", "'").Replace(fmt.Sprint(s))
}

func seconds(s float64) string { return fmt.Sprintf("%.1f", s) }

func milliseconds(v float64) string { return fmt.Sprintf("%.1f", v) }
