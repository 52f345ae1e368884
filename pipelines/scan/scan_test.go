package scan_test

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/greenlight-ci/greenlight/pipelines/scan"
)

func options(t *testing.T, r *testRegistry, ref string) scan.Options {
	t.Helper()
	return scan.Options{
		Reference: ref, OutputDir: t.TempDir(), CacheDir: t.TempDir(), DatabaseRepositories: []string{r.host + databaseTag},
		JavaDatabaseRepositories: []string{r.host + "/greenlight/trivy-java-db:1"}, Pause: time.Millisecond, Log: testLog{t},
	}
}

type testLog struct{ t *testing.T }

func (l testLog) Write(text []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(text)))
	return len(text), nil
}

func run(t *testing.T, o scan.Options) scan.Report {
	t.Helper()
	report, err := scan.Run(t.Context(), o)
	require.NoError(t, err)
	return report
}

// fails runs a scan that must fail with a one-line message and without a report.
func fails(t *testing.T, o scan.Options, pattern string) error {
	t.Helper()
	_, err := scan.Run(t.Context(), o)
	require.Error(t, err)
	require.Regexp(t, pattern, err.Error())
	require.NotContains(t, err.Error(), "\n")
	require.NoFileExists(t, filepath.Join(o.OutputDir, scan.ReportFile))
	return err
}

func ids(findings []scan.Finding) (list []string) {
	for _, finding := range findings {
		list = append(list, finding.ID+" "+finding.Package+" "+finding.Severity)
	}
	return list
}

func TestScan(t *testing.T) {
	r := newRegistry(t)
	r.pushDatabase(t, time.Now())
	ref := r.pushImage(t, vulnerableImage())
	o := options(t, r, ref)
	report := run(t, o)

	require.Equal(t, 1, report.Schema)
	require.Equal(t, ref, report.Reference)
	require.True(t, strings.HasSuffix(ref, "@"+report.Digest))
	require.Equal(t, []string{
		"CVE-2099-0001 flask CRITICAL", "CVE-2099-0002 libssl3 HIGH", "CVE-2099-0004 flask MEDIUM", "CVE-2099-0003 libssl3 LOW",
	}, ids(report.Findings))
	require.Equal(t, scan.Counts{Critical: 1, High: 1, Medium: 1, Low: 1}, report.Counts)
	require.Equal(t, 3, report.Packages)
	require.Equal(t, "2.0.0", report.Findings[0].Fixed)
	require.Equal(t, "usr/lib/python3/dist-packages/flask-1.0.0.dist-info/METADATA", report.Findings[0].Target)
	require.Empty(t, report.Findings[3].Fixed)
	require.WithinDuration(t, time.Now(), report.Database.UpdatedAt, time.Minute)
	require.Equal(t, r.host+databaseTag, report.Database.Repository)

	var written scan.Report
	readJSON(t, filepath.Join(o.OutputDir, scan.ReportFile), &written)
	require.Equal(t, report, written)
	var sarif struct {
		Version string
		Runs    []struct{ Results []any }
	}
	readJSON(t, filepath.Join(o.OutputDir, scan.SARIFFile), &sarif)
	require.Equal(t, "2.1.0", sarif.Version)
	require.Len(t, sarif.Runs[0].Results, 4)
	var sbom struct {
		BOMFormat       string `json:"bomFormat"`
		Components      []any
		Vulnerabilities []any
	}
	readJSON(t, filepath.Join(o.OutputDir, scan.SBOMFile), &sbom)
	require.Equal(t, "CycloneDX", sbom.BOMFormat)
	require.GreaterOrEqual(t, len(sbom.Components), 3)
	var trivy struct{ ArtifactName string }
	readJSON(t, filepath.Join(o.OutputDir, scan.TrivyFile), &trivy)
	require.Equal(t, ref, trivy.ArtifactName)

	// The second scan downloads neither the database nor the layers again.
	config := r.configDigest(t, ref)
	r.forgetRequests()
	run(t, o)
	require.Equal(t, r.requests("/blobs/"+config), r.requests("/blobs/"))

	t.Run("by tag", func(t *testing.T) {
		o := o
		o.Reference = r.tag(t, ref, "v1")
		require.Equal(t, ref, run(t, o).Reference)
	})
	t.Run("severity", func(t *testing.T) {
		o := o
		o.Severities = []string{"critical", "HIGH"}
		report := run(t, o)
		require.Equal(t, scan.Counts{Critical: 1, High: 1}, report.Counts)
		require.Equal(t, []string{"CRITICAL", "HIGH"}, report.Options.Severities)
	})
	t.Run("ignore unfixed", func(t *testing.T) {
		o := o
		o.IgnoreUnfixed = true
		report := run(t, o)
		require.Equal(t, scan.Counts{Critical: 1, High: 1, Medium: 1}, report.Counts)
		require.True(t, report.Options.IgnoreUnfixed)
	})
}

func TestIgnoreFile(t *testing.T) {
	r := newRegistry(t)
	r.pushDatabase(t, time.Now())
	o := options(t, r, r.pushImage(t, vulnerableImage()))
	write := func(name, content string) string {
		path := filepath.Join(t.TempDir(), name)
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		return path
	}
	for name, c := range map[string]struct {
		file    string
		ignored int
	}{
		"plain":        {write(".trivyignore", "# no\n\nCVE-2099-0001 # not reachable\n"), 1},
		"not expired":  {write(".trivyignore", "CVE-2099-0001 exp:2199-01-01\n"), 1},
		"expired":      {write(".trivyignore", "CVE-2099-0001 exp:2020-01-01\n"), 0},
		"YAML":         {write(".trivyignore.yaml", "vulnerabilities:\n- id: CVE-2099-0001\n  statement: not reachable\n  expired_at: 2199-01-01\n- id: CVE-2099-0002\n"), 2},
		"expired YAML": {write(".trivyignore.yaml", "vulnerabilities:\n- id: CVE-2099-0001\n  expired_at: 2020-01-01\n"), 0},
		"empty YAML":   {write(".trivyignore.yaml", ""), 0},
	} {
		t.Run(name, func(t *testing.T) {
			o := o
			o.IgnoreFile = c.file
			report := run(t, o)
			require.Equal(t, c.ignored, report.Counts.Ignored)
			require.Len(t, report.Suppressed, c.ignored)
			require.Len(t, report.Findings, 4-c.ignored)
			if name == "YAML" {
				require.Equal(t, "not reachable", report.Suppressed[0].Statement)
				require.Equal(t, c.file, report.Suppressed[0].Source)
			}
		})
	}
	for name, c := range map[string]struct{ file, message string }{
		"missing":         {filepath.Join(t.TempDir(), ".trivyignore"), "no such file"},
		"misspelt expiry": {write(".trivyignore.yaml", "vulnerabilities:\n- id: CVE-2099-0001\n  expires: 2020-01-01\n"), "expires not found"},
		"no id":           {write(".trivyignore.yaml", "vulnerabilities:\n- statement: all of them\n"), "has no id"},
		"bad date":        {write(".trivyignore", "# first\nCVE-2099-0001 exp:soon\n"), `.trivyignore:2: "exp:soon" after the id`},
		"no date":         {write(".trivyignore", "CVE-2099-0001 until 2020-01-01\n"), `"until" after the id`},
		"not YAML":        {write(".trivyignore.yaml", "{"), "ignore file"},
	} {
		t.Run(name, func(t *testing.T) {
			o := o
			o.IgnoreFile = c.file
			_, err := scan.Run(t.Context(), o)
			require.ErrorIs(t, err, scan.ErrOptions)
			require.ErrorContains(t, err, c.message)
		})
	}
}

func TestDatabase(t *testing.T) {
	r := newRegistry(t)
	r.pushDatabase(t, time.Now().Add(-10*24*time.Hour))
	o := options(t, r, r.pushImage(t, vulnerableImage()))
	fails(t, o, `the vulnerability database is 10 days old \(of .*\), more than the 7 days allowed; update .*trivy-db:2, or allow it with --allow-old-db`)
	o.AllowOldDatabase = true
	require.Equal(t, 1, run(t, o).Counts.Critical)

	// A database that was replaced is used at once, whatever the old one says about its next update.
	o.AllowOldDatabase = false
	r.pushDatabase(t, time.Now())
	require.WithinDuration(t, time.Now(), run(t, o).Database.UpdatedAt, time.Minute)

	file := filepath.Join(o.CacheDir, "db", "trivy.db")
	whole, err := os.ReadFile(file)
	require.NoError(t, err)
	truncate := func() { require.NoError(t, os.WriteFile(file, whole[:len(whole)/2], 0o600)) }
	t.Run("cut short and skipped", func(t *testing.T) {
		truncate()
		o := o
		o.SkipDatabaseUpdate = true
		fails(t, o, "is damaged: it has")
	})
	t.Run("cut short and downloaded again", func(t *testing.T) {
		truncate()
		require.Equal(t, 1, run(t, o).Counts.Critical)
	})
	t.Run("skip", func(t *testing.T) {
		o := o
		o.SkipDatabaseUpdate = true
		r.fail("trivy-db", http.StatusInternalServerError, 1000)
		defer r.fail("", 0, 0)
		require.Equal(t, 1, run(t, o).Counts.Critical)
		o.CacheDir = t.TempDir()
		fails(t, o, "there is no vulnerability database in")
	})
	t.Run("registry down, cached", func(t *testing.T) {
		r.fail("trivy-db", http.StatusServiceUnavailable, 1000)
		defer r.fail("", 0, 0)
		require.Equal(t, 1, run(t, o).Counts.Critical)
		o := o
		o.CacheDir = t.TempDir()
		fails(t, o, "looking up the vulnerability database .*still answers 503")
	})
	t.Run("second repository", func(t *testing.T) {
		o := o
		o.CacheDir = t.TempDir()
		o.DatabaseRepositories = []string{r.host + "/none/trivy-db:2", r.host + databaseTag}
		require.Equal(t, r.host+databaseTag, run(t, o).Database.Repository)
	})
	t.Run("no database but an image", func(t *testing.T) {
		o := o
		o.CacheDir = t.TempDir()
		o.DatabaseRepositories = []string{r.tag(t, o.Reference, "v1")}
		fails(t, o, "opening the vulnerability database")
	})
	t.Run("put there by hand", func(t *testing.T) {
		o := o
		o.SkipDatabaseUpdate = true
		require.NoError(t, os.Remove(filepath.Join(o.CacheDir, "db", "greenlight-source.json")))
		report := run(t, o)
		require.Empty(t, report.Database.Repository)
		require.Equal(t, 1, report.Counts.Critical)
	})
}

func TestHostileImages(t *testing.T) {
	r := newRegistry(t)
	r.pushDatabase(t, time.Now())
	t.Run("paths that are no URIs", func(t *testing.T) {
		files := vulnerableImage()
		files["opt/%zz/a:b/flask-1.0.0.dist-info/METADATA"] = "Metadata-Version: 2.1\nName: flask\nVersion: 1.0.0\n"
		files["%zz:c/flask-1.0.0.dist-info/METADATA"] = "Metadata-Version: 2.1\nName: flask\nVersion: 1.0.0\n"
		report := run(t, options(t, r, r.pushImage(t, files)))
		require.Equal(t, 3, report.Counts.Critical)
	})
	t.Run("nothing in it", func(t *testing.T) {
		report := run(t, options(t, r, r.pushImage(t, map[string]string{"hello": "x"})))
		require.Zero(t, report.Packages)
		require.Empty(t, report.Findings)
	})
	t.Run("a JAR without a Java database", func(t *testing.T) {
		files := vulnerableImage()
		files["app/demo.jar"] = emptyJAR
		o := options(t, r, r.pushImage(t, files))
		fails(t, o, "holds a JAR, and the Java database cannot be had: .*--java-db-repository")
		o.SkipFiles = []string{"**/*.jar"}
		require.Equal(t, 1, run(t, o).Counts.Critical)
	})
	t.Run("many layers", func(t *testing.T) {
		ref := r.pushLayers(t, vulnerableImage(), 120)
		require.Equal(t, 1, run(t, options(t, r, ref)).Counts.Critical)
	})
	t.Run("layer that is not what its digest says", func(t *testing.T) {
		ref := r.pushImage(t, vulnerableImage())
		r.corrupt = true
		defer func() { r.corrupt = false }()
		fails(t, options(t, r, ref), "scanning .*@sha256:")
	})
	t.Run("layer that is no tar", func(t *testing.T) {
		fails(t, options(t, r, r.pushGarbage(t)), "scanning .*@sha256:")
	})
	t.Run("a signature for an image", func(t *testing.T) {
		fails(t, options(t, r, r.host+databaseTag), "scanning .*@sha256:")
	})
}

func TestRegistryTrouble(t *testing.T) {
	r := newRegistry(t)
	r.pushDatabase(t, time.Now())
	ref := r.pushImage(t, vulnerableImage())
	for status, message := range map[int]string{
		401: "refuses access \\(401\\)", 403: "refuses access \\(403\\)", 404: "does not have it \\(404\\)", 429: "still answers 429", 500: "still answers 500",
	} {
		r.fail("", status, 1000)
		fails(t, options(t, r, ref), "looking up image .*: 127.*"+message)
		r.fail("", 0, 0)
	}
	t.Run("busy for a while", func(t *testing.T) {
		r.fail("", http.StatusTooManyRequests, 2)
		defer r.fail("", 0, 0)
		require.Equal(t, 1, run(t, options(t, r, ref)).Counts.Critical)
	})
	t.Run("a layer breaks off once", func(t *testing.T) {
		r.breakOff(1)
		defer r.breakOff(0)
		require.Equal(t, 1, run(t, options(t, r, ref)).Counts.Critical)
	})
	t.Run("layers always break off", func(t *testing.T) {
		r.breakOff(1000)
		defer r.breakOff(0)
		fails(t, options(t, r, ref), "broke the connection off|cannot be reached")
	})
	t.Run("nobody listens", func(t *testing.T) {
		o := options(t, r, strings.Replace(ref, r.host, closedPort(t), 1))
		fails(t, o, "cannot be reached: connect: connection refused; is the address right")
	})
	t.Run("credentials", func(t *testing.T) {
		r.password = "correct horse"
		defer func() { r.password = "" }()
		o := options(t, r, ref)
		err := fails(t, o, "refuses access \\(401\\)")
		require.NotContains(t, err.Error(), "horse")
		o.DockerConfig = filepath.Join(t.TempDir(), "registry-credentials")
		// "robot:correct horse" in base64.
		require.NoError(t, os.WriteFile(o.DockerConfig, []byte(`{"auths":{"`+r.host+`":{"auth":"cm9ib3Q6Y29ycmVjdCBob3JzZQ=="}}}`), 0o600))
		require.Equal(t, 1, run(t, o).Counts.Critical)
		require.Empty(t, os.Getenv("DOCKER_CONFIG"))
	})
}

func TestOptions(t *testing.T) {
	for name, change := range map[string]func(*scan.Options){
		"no reference":     func(o *scan.Options) { o.Reference = "" },
		"bad reference":    func(o *scan.Options) { o.Reference = "a b" },
		"no tag":           func(o *scan.Options) { o.Reference = "127.0.0.1:1/demo" },
		"no output":        func(o *scan.Options) { o.OutputDir = "" },
		"output is a file": func(o *scan.Options) { o.OutputDir = os.Args[0] },
		"severity":         func(o *scan.Options) { o.Severities = []string{"BAD"} },
		"platform":         func(o *scan.Options) { o.Platform = "linux" },
		"age":              func(o *scan.Options) { o.MaxDatabaseAge = -1 },
		"docker config":    func(o *scan.Options) { o.DockerConfig = filepath.Join(t.TempDir(), "none") },
	} {
		t.Run(name, func(t *testing.T) {
			o := scan.Options{Reference: "127.0.0.1:1/demo:v1", OutputDir: t.TempDir(), CacheDir: t.TempDir()}
			change(&o)
			_, err := scan.Run(t.Context(), o)
			require.ErrorIs(t, err, scan.ErrOptions)
			require.NotContains(t, err.Error(), "\n")
		})
	}
}

func readJSON(t *testing.T, path string, into any) {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(data, into))
}
