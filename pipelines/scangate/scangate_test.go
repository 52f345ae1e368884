package scangate_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/greenlight-ci/greenlight/pipelines/scangate"
)

const digest = "sha256:27c3135420bc184e86977170b6158c6133be3c7cc5c35e9e4fa87bdda629dc2b"

var now = time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)

// report is a good report with one finding of each of the given severities; a "+" after it means that a fix exists.
func report(findings ...string) map[string]any {
	counts := map[string]int{"critical": 0, "high": 0, "medium": 0, "low": 0, "unknown": 0, "ignored": 0}
	list := []any{}
	for _, text := range findings {
		severity, fixable := strings.CutSuffix(text, "+")
		fixed := ""
		if fixable {
			fixed = "1.3"
		}
		counts[strings.ToLower(severity)]++
		list = append(list, map[string]any{
			"id": "CVE-2026-0001", "package": "pkg", "installed": "1.2", "fixed": fixed, "severity": severity, "title": "Bad", "target": "debian 13",
		})
	}
	return map[string]any{
		"schema": 1, "reference": "registry.localhost:15000/demo@" + digest, "digest": digest,
		"startedAt": now.Add(-time.Minute), "seconds": 2.5, "trivyVersion": "0.74.0", "packages": 100,
		"database": map[string]any{"repository": "registry.localhost:15000/greenlight/trivy-db:2", "updatedAt": now.Add(-time.Hour)},
		"options":  map[string]any{"severities": []string{"CRITICAL", "HIGH", "MEDIUM", "LOW", "UNKNOWN"}, "ignoreUnfixed": false},
		"counts":   counts, "findings": list, "suppressed": []any{},
	}
}

func write(t *testing.T, content any) string {
	t.Helper()
	data, isText := content.(string)
	if !isText {
		encoded, err := json.Marshal(content)
		require.NoError(t, err)
		data = string(encoded)
	}
	path := filepath.Join(t.TempDir(), "scan.json")
	require.NoError(t, os.WriteFile(path, []byte(data), 0o600))
	return path
}

func run(t *testing.T, content any, change func(*scangate.Options)) (scangate.Result, error) {
	t.Helper()
	o := scangate.Options{ReportFile: write(t, content), Digest: digest, Now: now}
	if change != nil {
		change(&o)
	}
	return scangate.Run(t.Context(), o)
}

func TestVerdict(t *testing.T) {
	for name, c := range map[string]struct {
		findings []string
		change   func(*scangate.Options)
		rejected string
		passed   string
	}{
		"nothing found":        {nil, nil, "", "findings: none; forbidden: CRITICAL"},
		"critical":             {[]string{"CRITICAL+"}, nil, "1 CRITICAL: CVE-2026-0001 in pkg 1.2 (fixed in 1.3)", ""},
		"critical without fix": {[]string{"CRITICAL"}, nil, "1 CRITICAL: CVE-2026-0001 in pkg 1.2 (no fix yet)", ""},
		"high is allowed":      {[]string{"HIGH+", "HIGH"}, nil, "", "findings: 2 HIGH; forbidden: CRITICAL"},
		"high is forbidden": {
			[]string{"LOW", "HIGH+"},
			func(o *scangate.Options) { o.FailSeverities = []string{"CRITICAL", "HIGH"} },
			"1 HIGH: CVE-2026-0001 in pkg 1.2 (fixed in 1.3)", "",
		},
		"worst first, three named": {
			[]string{"HIGH+", "HIGH+", "CRITICAL+", "HIGH+"},
			func(o *scangate.Options) { o.FailSeverities = []string{"HIGH", "CRITICAL"} },
			"1 CRITICAL, 3 HIGH: CVE-2026-0001 in pkg 1.2 (fixed in 1.3); CVE-2026-0001 in pkg 1.2 (fixed in 1.3); CVE-2026-0001 in pkg 1.2 (fixed in 1.3); and 1 more", "",
		},
		"fixable only, no fix": {[]string{"CRITICAL"}, func(o *scangate.Options) { o.FixableOnly = true }, "", "findings: 1 CRITICAL; forbidden: CRITICAL with a fix"},
		"fixable only, fix":    {[]string{"CRITICAL", "CRITICAL+"}, func(o *scangate.Options) { o.FixableOnly = true }, "1 CRITICAL: CVE-2026-0001 in pkg 1.2 (fixed in 1.3)", ""},
		"nothing is forbidden": {[]string{"CRITICAL"}, func(o *scangate.Options) { o.FailSeverities = []string{} }, "", "findings: 1 CRITICAL; none is forbidden"},
	} {
		t.Run(name, func(t *testing.T) {
			result, err := run(t, report(c.findings...), c.change)
			if c.rejected != "" {
				require.ErrorIs(t, err, scangate.ErrRejected)
				require.False(t, result.Passed)
				require.Equal(t, c.rejected, result.Reason)
				require.NotEmpty(t, result.Failing)
				require.ErrorContains(t, err, c.rejected)
				return
			}
			require.NoError(t, err)
			require.True(t, result.Passed)
			require.Equal(t, c.passed, result.Reason)
			require.Equal(t, digest, result.Digest)
		})
	}
}

func TestUnusableReports(t *testing.T) {
	changed := func(change func(map[string]any)) map[string]any {
		r := report("CRITICAL+", "HIGH")
		change(r)
		return r
	}
	whole, err := json.Marshal(report("CRITICAL+"))
	require.NoError(t, err)
	text := string(whole)
	for name, c := range map[string]struct {
		content any
		message string
	}{
		"empty":              {"", "it ends in the middle|unexpected|EOF|it is no scan report"},
		"null":               {"null", "schema 1"},
		"list":               {"[]", "no scan report"},
		"cut short":          {text[:len(text)-2], "not JSON|middle"},
		"cut in a list":      {text[:strings.Index(text, "findings")+20], "not JSON|middle"},
		"trailing":           {text + "{}", "follows"},
		"Trivy's own report": {map[string]any{"SchemaVersion": 2, "Results": []any{}}, "schema 1"},
		"other schema":       {changed(func(r map[string]any) { r["schema"] = 2 }), "schema 1"},
		"unknown key":        {changed(func(r map[string]any) { r["verdict"] = "pass" }), "verdict"},
		"doubled key":        {strings.Replace(text, `"findings":`, `"findings":[],"findings":`, 1), `"findings" occurs twice`},
		"key in two cases":   {strings.Replace(text, `"findings":`, `"Findings":[],"findings":`, 1), "occurs twice"},
		"no findings key":    {changed(func(r map[string]any) { delete(r, "findings") }), `no "findings"`},
		"findings null":      {changed(func(r map[string]any) { r["findings"] = nil }), `findings`},
		"no counts":          {changed(func(r map[string]any) { delete(r, "counts") }), `no "counts"`},
		"no options":         {changed(func(r map[string]any) { delete(r, "options") }), `no "options"`},
		"no database":        {changed(func(r map[string]any) { delete(r, "database") }), `no "database"`},
		"findings removed":   {changed(func(r map[string]any) { r["findings"] = []any{} }), "do not match"},
		"counts lowered":     {changed(func(r map[string]any) { r["counts"].(map[string]int)["critical"] = 0 }), "do not match"},
		"severity changed":   {changed(func(r map[string]any) { r["findings"].([]any)[0].(map[string]any)["severity"] = "critical" }), "severity"},
		"finding without id": {changed(func(r map[string]any) { r["findings"].([]any)[0].(map[string]any)["id"] = "" }), "no id"},
		"another image":      {changed(func(r map[string]any) { other(r) }), "it is about sha256:0000"},
		"reference differs":  {changed(func(r map[string]any) { r["reference"] = "demo:v1" }), "does not end in its digest"},
		"bad digest":         {changed(func(r map[string]any) { r["digest"] = "latest" }), "must be sha256:"},
		"old":                {changed(func(r map[string]any) { r["startedAt"] = now.Add(-25 * time.Hour) }), "scan again"},
		"from the future":    {changed(func(r map[string]any) { r["startedAt"] = now.Add(time.Hour) }), "in the future"},
		"no time":            {changed(func(r map[string]any) { delete(r, "startedAt") }), "when it was made"},
		"no database age":    {changed(func(r map[string]any) { r["database"] = map[string]any{"repository": "x"} }), "how old its vulnerability database"},
		"hides criticals":    {changed(func(r map[string]any) { r["options"].(map[string]any)["severities"] = []string{"HIGH"} }), "left CRITICAL findings out"},
		"hides unfixed":      {changed(func(r map[string]any) { r["options"].(map[string]any)["ignoreUnfixed"] = true }), "without --ignore-unfixed"},
		"number as text":     {changed(func(r map[string]any) { r["seconds"] = "2.5" }), "no scan report"},
	} {
		t.Run(name, func(t *testing.T) {
			result, err := run(t, c.content, nil)
			require.ErrorIs(t, err, scangate.ErrReport)
			require.NotErrorIs(t, err, scangate.ErrRejected)
			require.Zero(t, result)
			require.NotContains(t, err.Error(), "\n")
			require.Regexp(t, c.message, err.Error())
		})
	}
	t.Run("missing", func(t *testing.T) {
		_, err := scangate.Run(t.Context(), scangate.Options{ReportFile: filepath.Join(t.TempDir(), "scan.json"), Digest: digest})
		require.ErrorIs(t, err, scangate.ErrReport)
	})
	t.Run("old database", func(t *testing.T) {
		_, err := run(t, report(), func(o *scangate.Options) { o.MaxDatabaseAge = time.Minute })
		require.ErrorIs(t, err, scangate.ErrReport)
		require.ErrorContains(t, err, "database was 1h0m0s old")
	})
	t.Run("unfixed hidden but not asked for", func(t *testing.T) {
		r := report("CRITICAL+")
		r["options"].(map[string]any)["ignoreUnfixed"] = true
		_, err := run(t, r, func(o *scangate.Options) { o.FixableOnly = true })
		require.ErrorIs(t, err, scangate.ErrRejected)
	})
}

func other(r map[string]any) {
	r["digest"] = "sha256:" + strings.Repeat("0", 64)
	r["reference"] = "demo@" + r["digest"].(string)
}

func TestOptions(t *testing.T) {
	for name, change := range map[string]func(*scangate.Options){
		"no file":          func(o *scangate.Options) { o.ReportFile = "" },
		"no digest":        func(o *scangate.Options) { o.Digest = "" },
		"tag for a digest": func(o *scangate.Options) { o.Digest = "v1" },
		"severity":         func(o *scangate.Options) { o.FailSeverities = []string{"critical"} },
		"negative age":     func(o *scangate.Options) { o.MaxAge = -1 },
	} {
		t.Run(name, func(t *testing.T) {
			_, err := run(t, report(), change)
			require.ErrorIs(t, err, scangate.ErrOptions)
		})
	}
}

// A finding's text comes from an advisory database and an image; it must not break the line.
func TestReasonIsOneLine(t *testing.T) {
	r := report("CRITICAL+")
	finding := r["findings"].([]any)[0].(map[string]any)
	finding["package"], finding["installed"], finding["fixed"] = "pkg\n\x1b[2J", "1\r2", "1\u20283"
	result, err := run(t, r, nil)
	require.ErrorIs(t, err, scangate.ErrRejected)
	require.NotRegexp(t, "[\x00-\x1f\u2028]", result.Reason)
}

func FuzzParseReport(f *testing.F) {
	for _, findings := range [][]string{nil, {"CRITICAL+"}, {"HIGH", "LOW", "UNKNOWN"}} {
		data, err := json.Marshal(report(findings...))
		require.NoError(f, err)
		f.Add(data)
	}
	f.Add([]byte(`{"schema":1,"schema":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		parsed, err := scangate.ParseReport(data)
		if err != nil {
			return
		}
		// Whatever is accepted has as many findings as it counts, and says the same when it is written and read again.
		c := parsed.Counts
		require.Len(t, parsed.Findings, c.Critical+c.High+c.Medium+c.Low+c.Unknown)
		again, err := json.Marshal(parsed)
		require.NoError(t, err)
		if parsed.Findings != nil {
			_, err = scangate.ParseReport(again)
			require.NoError(t, err)
		}
	})
}
