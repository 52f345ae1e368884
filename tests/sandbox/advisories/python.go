package advisories

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	trivy "github.com/aquasecurity/trivy-db/pkg/types"
	cvss30 "github.com/pandatix/go-cvss/30"
	cvss31 "github.com/pandatix/go-cvss/31"
	cvss40 "github.com/pandatix/go-cvss/40"
)

// pythonAdvisory is a line of pypa.jsonl.
type pythonAdvisory struct {
	ID      string   `json:"id"`
	Aliases []string `json:"aliases"`
	Package string   `json:"package"`
	Events  []struct {
		Introduced   string `json:"introduced"`
		Fixed        string `json:"fixed"`
		LastAffected string `json:"last_affected"`
	} `json:"events"`
	Severity []struct {
		Type  string `json:"type"`
		Score string `json:"score"`
	} `json:"severity"`
	Published string `json:"published"`
}

func readPython(r io.Reader) ([]pythonAdvisory, error) {
	return readLines[pythonAdvisory](r, "Python advisories")
}

// readVectors returns CVSS vectors by CVE.
func readVectors(r io.Reader) (map[string]string, error) {
	type line struct{ ID, Vector string }
	lines, err := readLines[line](r, "NVD vectors")
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, l := range lines {
		out[l.ID] = l.Vector
	}
	return out, nil
}

func readLines[T any](r io.Reader, what string) ([]T, error) {
	var out []T
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		if strings.TrimSpace(lines.Text()) == "" {
			continue
		}
		var one T
		if err := json.Unmarshal(lines.Bytes(), &one); err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", what, n, err)
		}
		out = append(out, one)
	}
	return out, lines.Err()
}

// vulnerabilityIDs returns the ids that Trivy knows the advisory under, CVEs where there are any, and the others.
func (a pythonAdvisory) vulnerabilityIDs() (ids, others []string) {
	for _, id := range append(append([]string{}, a.Aliases...), a.ID) {
		if strings.HasPrefix(id, "CVE-") {
			ids = append(ids, id)
		} else {
			others = append(others, id)
		}
	}
	if len(ids) == 0 {
		return []string{a.ID}, a.Aliases
	}
	return ids, others
}

// ranges returns the affected versions as Trivy's constraints, and the versions that fix it.
func (a pythonAdvisory) ranges() (vulnerable, patched []string) {
	from := ""
	lower := func() string {
		if from == "" || from == "0" {
			return ""
		}
		return ">=" + from + ", "
	}
	open := false
	for _, e := range a.Events {
		switch {
		case e.Introduced != "":
			if open {
				vulnerable = append(vulnerable, ">="+from)
			}
			from, open = e.Introduced, true
		case e.Fixed != "":
			vulnerable = append(vulnerable, lower()+"<"+e.Fixed)
			patched = append(patched, e.Fixed)
			open = false
		case e.LastAffected != "":
			vulnerable = append(vulnerable, lower()+"<="+e.LastAffected)
			open = false
		}
	}
	if open {
		vulnerable = append(vulnerable, ">="+from)
	}
	return vulnerable, patched
}

func (a pythonAdvisory) published() *time.Time {
	for _, format := range []string{time.RFC3339, "2006-01-02 15:04:05Z07:00"} {
		if t, err := time.Parse(format, a.Published); err == nil {
			t = t.UTC()
			return &t
		}
	}
	return nil
}

// vector returns the advisory's own CVSS vector, the newest version if there are several, or "".
func (a pythonAdvisory) vector() string {
	best := ""
	for _, s := range a.Severity {
		if strings.HasPrefix(s.Score, "CVSS:") && s.Score > best {
			best = s.Score
		}
	}
	return best
}

// scored is a CVSS vector with what it comes to.
type scored struct {
	cvss     trivy.CVSS
	severity trivy.Severity
}

// score computes the base score of a CVSS vector of version 3.0, 3.1 or 4.0, and its severity by CVSS's own scale.
func score(vector string) (scored, error) {
	var (
		s     scored
		value float64
	)
	switch {
	case strings.HasPrefix(vector, "CVSS:3.0/"):
		v, err := cvss30.ParseVector(vector)
		if err != nil {
			return s, fmt.Errorf("CVSS vector %q: %w", vector, err)
		}
		value = v.BaseScore()
		s.cvss.V3Vector, s.cvss.V3Score = vector, value
	case strings.HasPrefix(vector, "CVSS:3.1/"):
		v, err := cvss31.ParseVector(vector)
		if err != nil {
			return s, fmt.Errorf("CVSS vector %q: %w", vector, err)
		}
		value = v.BaseScore()
		s.cvss.V3Vector, s.cvss.V3Score = vector, value
	case strings.HasPrefix(vector, "CVSS:4.0/"):
		v, err := cvss40.ParseVector(vector)
		if err != nil {
			return s, fmt.Errorf("CVSS vector %q: %w", vector, err)
		}
		value = v.Score()
		s.cvss.V40Vector, s.cvss.V40Score = vector, value
	default:
		return s, fmt.Errorf("CVSS vector %q: unknown version", vector)
	}
	switch {
	case value >= 9:
		s.severity = trivy.SeverityCritical
	case value >= 7:
		s.severity = trivy.SeverityHigh
	case value >= 4:
		s.severity = trivy.SeverityMedium
	case value > 0:
		s.severity = trivy.SeverityLow
	}
	return s, nil
}
