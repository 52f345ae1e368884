package main

import (
	"context"
	"encoding/json"
	"fmt"
	"html"
	"strconv"
	"strings"

	"dagger/greenlight/internal/dagger"
)

// Report is how a release ended.
type Report struct {
	// How it ended: released, rejected, rolled-back or failed.
	Status string
	// One line that says why, when it was not released.
	Reason string
	// Greenlight's exit code: 0 done, 1 failed, 2 usage or config, 3 a gate said no, 4 rolled back, 5 locked.
	ExitCode int
	// The version that was to be released.
	Version string
	// The image by digest; empty when it ended before there was one.
	Image string
	// The digest of the image.
	Digest string
	// +private
	Files *dagger.Directory
}

// The report as JSON (report.json).
func (r *Report) Json() *dagger.File { return r.Files.File("report.json") }

// The report as Markdown, for a job summary or a merge request.
func (r *Report) Markdown() *dagger.File { return r.Files.File("report.md") }

// The report as one HTML page.
func (r *Report) Html() *dagger.File { return r.Files.File("report.html") }

// The scan's findings as SARIF, for code scanning. There is none when the release ended before the scan.
func (r *Report) Sarif() *dagger.File { return r.Files.File("scan.sarif") }

// The software bill of materials of the image as CycloneDX. There is none when the release ended before the scan.
func (r *Report) Sbom() *dagger.File { return r.Files.File("sbom.cdx.json") }

// All of the report's files: report.json, report.md, report.html, exit-code, release.env (status, reason and so on as
// NAME=VALUE lines), and from the scan on build.json, scan.json, scan.sarif, sbom.cdx.json and trivy.json.
func (r *Report) Directory() *dagger.Directory { return r.Files }

// The report in one line.
func (r *Report) Summary() string {
	line := fmt.Sprintf("%s: %s", r.Version, r.Status)
	if r.Image != "" {
		line += " (" + r.Image + ")"
	}
	if r.Reason != "" {
		line += ": " + r.Reason
	}
	return line
}

// reportJSON is the part of report.json that the module reads and, when a release ends before greenlight itself ran,
// writes.
type reportJSON struct {
	ID                string  `json:"id"`
	Service           string  `json:"service"`
	Version           string  `json:"version"`
	Image             string  `json:"image"`
	Digest            string  `json:"digest"`
	Status            string  `json:"status"`
	Reason            string  `json:"reason"`
	Stages            []stage `json:"stages"`
	Switch            any     `json:"switch"`
	Latency           any     `json:"latency"`
	Scan              any     `json:"scan"`
	GPUSecondsDoubled float64 `json:"gpuSecondsDoubled"`
	Live              any     `json:"live"`
}

// stage is one line of the plan.
type stage struct {
	Name      string  `json:"name"`
	Status    string  `json:"status"`
	StartedAt string  `json:"startedAt"`
	Seconds   float64 `json:"seconds"`
	Detail    string  `json:"detail"`
}

// earlyReport is the report of a release that ended before anything was asked of the cluster.
func earlyReport(service, version string, record buildRecord, stages []stage, end *ending, files *dagger.Directory) (*Report, error) {
	content := reportJSON{
		Service: service, Version: version, Image: record.Reference, Digest: record.Digest, Status: "failed", Reason: end.reason, Stages: stages,
	}
	data, err := json.MarshalIndent(content, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("writing the report: %w", err)
	}
	var markdown, page strings.Builder
	title := strings.TrimSpace(service + " " + version)
	fmt.Fprintf(&markdown, "# %s: failed\n\n%s\n\n| stage | status | seconds | detail |\n|---|---|---:|---|\n", cell(title), cell(end.reason))
	fmt.Fprintf(&page, "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>%[1]s: failed</title><h1>%[1]s: failed</h1><p>%[2]s</p><table><tr><th>stage<th>status<th>seconds<th>detail",
		html.EscapeString(title), html.EscapeString(end.reason))
	for _, s := range stages {
		fmt.Fprintf(&markdown, "| %s | %s | %.1f | %s |\n", s.Name, s.Status, s.Seconds, cell(s.Detail))
		fmt.Fprintf(&page, "<tr><td>%s<td>%s<td>%.1f<td>%s", s.Name, s.Status, s.Seconds, html.EscapeString(s.Detail))
	}
	page.WriteString("</table></html>\n")
	return (&Report{
		Status: "failed", Reason: end.reason, ExitCode: end.code, Version: version, Image: record.Reference, Digest: record.Digest,
		Files: files.
			WithNewFile("report.json", string(data)+"\n").
			WithNewFile("report.md", markdown.String()).
			WithNewFile("report.html", page.String()),
	}).withOutputs(), nil
}

// cell makes text safe for one cell of a Markdown table.
func cell(s string) string {
	return strings.NewReplacer("|", "\\|", "\n", " ", "\r", " ", "<", "&lt;", ">", "&gt;", "`", "'").Replace(s)
}

// reportOf reads the report that greenlight wrote.
func reportOf(ctx context.Context, done outcome, files *dagger.Directory) (*Report, error) {
	text, err := files.File("report.json").Contents(ctx)
	if err != nil {
		return nil, &ending{code: done.verdict(), reason: done.reason()}
	}
	var content reportJSON
	if err := json.Unmarshal([]byte(text), &content); err != nil {
		return nil, fmt.Errorf("reading report.json: %w", err)
	}
	if done.failed() && content.Reason == "" {
		content.Reason = done.reason()
	}
	return (&Report{
		Status: content.Status, Reason: asCalled(oneLine(content.Reason)), ExitCode: done.verdict(), Version: content.Version, Image: content.Image,
		Digest: content.Digest, Files: files,
	}).withOutputs(), nil
}

// withOutputs adds what scripts in a CI read without a JSON parser: the exit code, and all scalars as NAME=VALUE lines.
func (r *Report) withOutputs() *Report {
	var env strings.Builder
	for _, output := range [][2]string{
		{"STATUS", r.Status}, {"REASON", r.Reason}, {"EXIT_CODE", strconv.Itoa(r.ExitCode)}, {"VERSION", r.Version}, {"IMAGE", r.Image}, {"DIGEST", r.Digest},
	} {
		fmt.Fprintf(&env, "GREENLIGHT_%s=%s\n", output[0], oneLine(output[1]))
	}
	r.Files = r.Files.WithNewFile("exit-code", strconv.Itoa(r.ExitCode)+"\n").WithNewFile("release.env", env.String())
	return r
}
