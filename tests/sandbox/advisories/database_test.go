package advisories

import (
	"encoding/json"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aquasecurity/trivy-db/pkg/db"
	dbmetadata "github.com/aquasecurity/trivy-db/pkg/metadata"
	trivy "github.com/aquasecurity/trivy-db/pkg/types"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/require"

	"github.com/greenlight-ci/greenlight/tests/sandbox/registry"
)

// TestDatabaseReadByTrivy writes the whole database and reads it with Trivy's own package.
func TestDatabaseReadByTrivy(t *testing.T) {
	dir := t.TempDir()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	n, err := write(dir, []releaseFixes{{Release: "13", Fixes: []fix{{Source: "openssl", CVE: "CVE-2025-9230", Version: "3.5.1-1+deb13u1"}}}}, now)
	require.NoError(t, err)
	require.Equal(t, 218, n.python)
	require.Equal(t, 1, n.debian)

	meta, err := dbmetadata.NewClient(dir).Get()
	require.NoError(t, err)
	require.Equal(t, dbmetadata.Metadata{Version: db.SchemaVersion, UpdatedAt: now, NextUpdate: now.Add(maxAge)}, meta)

	require.NoError(t, db.Init(dir))
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	trivyDB := db.Config{}

	advisories, err := trivyDB.GetAdvisories("pip::", "joblib")
	require.NoError(t, err)
	require.Len(t, advisories, 1)
	require.Equal(t, "CVE-2022-21797", advisories[0].VulnerabilityID)
	require.Equal(t, []string{"<1.2.0"}, advisories[0].VulnerableVersions)
	require.Equal(t, []string{"1.2.0"}, advisories[0].PatchedVersions)
	require.Equal(t, []string{"PYSEC-2022-288"}, advisories[0].VendorIDs)
	require.Equal(t, sourceOSV, advisories[0].DataSource.ID)

	detail, err := trivyDB.GetVulnerability("CVE-2022-21797")
	require.NoError(t, err)
	require.Equal(t, trivy.SeverityCritical, detail.VendorSeverity[sourceNVD])
	require.InDelta(t, 9.8, detail.CVSS[sourceNVD].V3Score, 0)

	detail, err = trivyDB.GetVulnerability("CVE-2023-43804")
	require.NoError(t, err)
	require.Equal(t, trivy.SeverityHigh, detail.VendorSeverity[sourceOSV])

	debian, err := trivyDB.GetAdvisories("debian 13", "openssl")
	require.NoError(t, err)
	require.Len(t, debian, 1)
	require.Equal(t, "3.5.1-1+deb13u1", debian[0].FixedVersion)
	_, err = trivyDB.GetVulnerability("CVE-2025-9230")
	require.NoError(t, err)
}

func TestRanges(t *testing.T) {
	for _, c := range []struct{ name, events, vulnerable, patched string }{
		{"from the start", `[{"introduced":"0"},{"fixed":"2"}]`, "<2", "2"},
		{"from a version", `[{"introduced":"1.5"},{"fixed":"2"}]`, ">=1.5, <2", "2"},
		{"two ranges", `[{"introduced":"2.0.0"},{"fixed":"2.0.6"},{"introduced":"0"},{"fixed":"1.26.17"}]`, ">=2.0.0, <2.0.6|<1.26.17", "2.0.6|1.26.17"},
		{"last affected", `[{"introduced":"0"},{"last_affected":"1.11.0"}]`, "<=1.11.0", ""},
		{"never fixed", `[{"introduced":"0"}]`, ">=0", ""},
		{"fixed, then broken again", `[{"introduced":"0"},{"fixed":"1"},{"introduced":"3"}]`, "<1|>=3", "1"},
		{"two open ranges", `[{"introduced":"1"},{"introduced":"3"}]`, ">=1|>=3", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var a pythonAdvisory
			require.NoError(t, json.Unmarshal([]byte(`{"events":`+c.events+`}`), &a))
			vulnerable, patched := a.ranges()
			require.Equal(t, c.vulnerable, strings.Join(vulnerable, "|"))
			require.Equal(t, c.patched, strings.Join(patched, "|"))
		})
	}
}

func TestScore(t *testing.T) {
	for vector, want := range map[string]trivy.Severity{
		"CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H":                    trivy.SeverityCritical,
		"CVSS:3.0/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:N/A:N":                    trivy.SeverityHigh,
		"CVSS:3.1/AV:N/AC:L/PR:N/UI:R/S:C/C:L/I:L/A:N":                    trivy.SeverityMedium,
		"CVSS:3.1/AV:L/AC:L/PR:L/UI:N/S:U/C:N/I:L/A:N":                    trivy.SeverityLow,
		"CVSS:3.1/AV:L/AC:L/PR:L/UI:N/S:U/C:N/I:N/A:N":                    trivy.SeverityUnknown,
		"CVSS:4.0/AV:N/AC:L/AT:N/PR:N/UI:N/VC:H/VI:H/VA:H/SC:N/SI:N/SA:N": trivy.SeverityCritical,
	} {
		s, err := score(vector)
		require.NoError(t, err)
		require.Equal(t, want, s.severity, vector)
	}
	for _, bad := range []string{"", "AV:N/AC:L", "CVSS:3.1/AV:X", "CVSS:9.9/AV:N"} {
		_, err := score(bad)
		require.Error(t, err, bad)
	}
}

func TestEnsure(t *testing.T) {
	handler, err := registry.NewHandler(t.TempDir())
	require.NoError(t, err)
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	addr := strings.TrimPrefix(server.URL, "http://")
	ref, err := name.NewTag(addr+"/"+Repository+":"+Tag, name.Insecure)
	require.NoError(t, err)
	digest := func() string {
		head, err := remote.Head(ref)
		require.NoError(t, err)
		return head.Digest.String()
	}
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	changelogs := t.TempDir()
	o := Options{RegistryAddr: addr, Debian: []DebianSource{{Release: "13", Pattern: filepath.Join(changelogs, "*.gz")}}, Now: now}

	got, err := Ensure(t.Context(), o)
	require.NoError(t, err)
	require.Equal(t, registry.Name+"/greenlight/trivy-db:2", got)
	first := digest()

	image, err := remote.Image(ref)
	require.NoError(t, err)
	manifest, err := image.Manifest()
	require.NoError(t, err)
	require.Len(t, manifest.Layers, 1)
	require.EqualValues(t, layerMediaType, manifest.Layers[0].MediaType)
	require.Equal(t, "db.tar.gz", manifest.Layers[0].Annotations["org.opencontainers.image.title"])

	o.Now = now.Add(maxAge - time.Hour)
	_, err = Ensure(t.Context(), o)
	require.NoError(t, err)
	require.Equal(t, first, digest(), "fresh: kept")

	o.Now = now.Add(maxAge + time.Hour)
	_, err = Ensure(t.Context(), o)
	require.NoError(t, err)
	second := digest()
	require.NotEqual(t, first, second, "too old: built anew")

	writeChangelog(t, filepath.Join(changelogs, "openssl.gz"))
	_, err = Ensure(t.Context(), o)
	require.NoError(t, err)
	require.NotEqual(t, second, digest(), "other advisories: built anew")
}
