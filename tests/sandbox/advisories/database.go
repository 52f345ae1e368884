package advisories

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	trivy "github.com/aquasecurity/trivy-db/pkg/types"
	"go.etcd.io/bbolt"
)

// database is a Trivy database that is being written, in the layout of schema version 2: a bucket for each source with a
// bucket for each package in it, and the buckets "vulnerability" and "data-source".
type database struct{ *bbolt.DB }

// counts says what a database holds.
type counts struct{ python, debian int }

const (
	sourceOSV    trivy.SourceID = "osv"
	sourceNVD    trivy.SourceID = "nvd"
	sourceDebian trivy.SourceID = "debian"

	// Trivy reads all buckets that start with "pip::".
	pythonSourceName = "Python Packaging Advisory Database"
	pythonBucket     = "pip::" + pythonSourceName
)

func createDatabase(path string) (database, error) {
	// No syncing: a database that a crash cuts short is never used.
	db, err := bbolt.Open(path, 0o644, &bbolt.Options{Timeout: 5 * time.Second, NoSync: true, NoFreelistSync: true})
	if err != nil {
		return database{}, fmt.Errorf("creating %s: %w", path, err)
	}
	return database{db}, nil
}

func (d database) fill(python []pythonAdvisory, nvd map[string]string, debian []releaseFixes) (counts, error) {
	var n counts
	err := d.Update(func(tx *bbolt.Tx) error {
		details := map[string]*trivy.Vulnerability{}
		if err := put(tx, []string{"data-source"}, pythonBucket, trivy.DataSource{
			ID: sourceOSV, Name: pythonSourceName, URL: "https://github.com/pypa/advisory-database",
		}); err != nil {
			return err
		}
		for _, a := range python {
			if err := putPython(tx, a, nvd, details); err != nil {
				return fmt.Errorf("%s: %w", a.ID, err)
			}
			n.python++
		}
		for _, release := range debian {
			bucket := "debian " + release.Release
			if err := put(tx, []string{"data-source"}, bucket, trivy.DataSource{
				ID: sourceDebian, Name: "Debian package changelogs", URL: "https://tracker.debian.org",
			}); err != nil {
				return err
			}
			for _, f := range release.Fixes {
				if err := put(tx, []string{bucket, f.Source}, f.CVE, trivy.Advisory{FixedVersion: f.Version}); err != nil {
					return fmt.Errorf("%s in %s: %w", f.CVE, f.Source, err)
				}
				if details[f.CVE] == nil {
					details[f.CVE] = &trivy.Vulnerability{Title: f.CVE + " in " + f.Source}
				}
				n.debian++
			}
		}
		for id, detail := range details {
			if err := put(tx, []string{"vulnerability"}, id, detail); err != nil {
				return fmt.Errorf("%s: %w", id, err)
			}
		}
		return nil
	})
	return n, err
}

func putPython(tx *bbolt.Tx, a pythonAdvisory, nvd map[string]string, details map[string]*trivy.Vulnerability) error {
	ids, others := a.vulnerabilityIDs()
	vulnerable, patched := a.ranges()
	if len(vulnerable) == 0 {
		return fmt.Errorf("no affected versions")
	}
	// Trivy looks names up in lower case with hyphens.
	pkg := strings.ReplaceAll(strings.ToLower(a.Package), "_", "-")
	for _, id := range ids {
		if err := put(tx, []string{pythonBucket, pkg}, id, trivy.Advisory{
			VendorIDs: others, VulnerableVersions: vulnerable, PatchedVersions: patched,
		}); err != nil {
			return err
		}
		detail, err := describe(a, nvd[id])
		if err != nil {
			return err
		}
		// One CVE may have an advisory for each of several packages.
		if old := details[id]; old == nil || len(old.VendorSeverity) < len(detail.VendorSeverity) {
			details[id] = detail
		}
	}
	return nil
}

// describe makes the entry of the bucket "vulnerability"; nvd is NVD's vector if it is known.
func describe(a pythonAdvisory, nvd string) (*trivy.Vulnerability, error) {
	v := &trivy.Vulnerability{
		Title:          a.Package + ": " + a.ID,
		References:     []string{"https://osv.dev/vulnerability/" + a.ID},
		VendorSeverity: trivy.VendorSeverity{},
		CVSS:           trivy.VendorCVSS{},
		PublishedDate:  a.published(),
	}
	for source, vector := range map[trivy.SourceID]string{sourceOSV: a.vector(), sourceNVD: nvd} {
		if vector == "" {
			continue
		}
		s, err := score(vector)
		if err != nil {
			return nil, err
		}
		v.VendorSeverity[source], v.CVSS[source] = s.severity, s.cvss
	}
	return v, nil
}

// put stores value as JSON under key in nested buckets, which it creates.
func put(tx *bbolt.Tx, buckets []string, key string, value any) error {
	b, err := tx.CreateBucketIfNotExists([]byte(buckets[0]))
	if err != nil {
		return err
	}
	for _, nested := range buckets[1:] {
		if b, err = b.CreateBucketIfNotExists([]byte(nested)); err != nil {
			return err
		}
	}
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return b.Put([]byte(key), data)
}
