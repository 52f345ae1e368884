package scan

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	dbtypes "github.com/aquasecurity/trivy-db/pkg/types"
	"github.com/aquasecurity/trivy/pkg/commands/artifact"
	"github.com/aquasecurity/trivy/pkg/db"
	ftypes "github.com/aquasecurity/trivy/pkg/fanal/types"
	"github.com/aquasecurity/trivy/pkg/flag"
	"github.com/aquasecurity/trivy/pkg/javadb"
	"github.com/aquasecurity/trivy/pkg/log"
	trivyreport "github.com/aquasecurity/trivy/pkg/report"
	"github.com/aquasecurity/trivy/pkg/types"
	xhttp "github.com/aquasecurity/trivy/pkg/x/http"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	_ "modernc.org/sqlite" // Without this driver an image with a JAR or an RPM database fails at run time.
)

// Everything that this module knows of Trivy is in this file: Trivy makes no promise about its packages, so that an
// update of it is work here and nowhere else.

// trivy is an open scanner.
type trivy struct {
	runner  artifact.Runner
	options flag.Options
	retry   registry
}

// found is what Trivy found, after its filters.
type found struct{ types.Report }

// openTrivy downloads the vulnerability database, unless the one in the cache is the one to use, and opens it.
func openTrivy(ctx context.Context, o Options, image string, databaseIsFresh bool) (*trivy, error) {
	log.InitLogger(false, !o.Verbose)
	options, err := trivyOptions(o, image)
	if err != nil {
		return nil, err
	}
	options.SkipDBUpdate = databaseIsFresh
	t := &trivy{options: options, retry: newRegistry(o)}
	err = t.retry.retry(ctx, func() error {
		return guarded(func() (err error) {
			t.runner, err = artifact.NewRunner(t.transport(ctx), options, artifact.TargetContainerImage)
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("opening the vulnerability database: %w", t.explain(err))
	}
	return t, nil
}

func (t *trivy) close(ctx context.Context) { _ = t.runner.Close(ctx) }

// scan analyses the image and looks its packages up. Layers that were analysed before are taken from the cache.
func (t *trivy) scan(ctx context.Context) (found, error) {
	var report types.Report
	err := t.retry.retry(ctx, func() error {
		return guarded(func() (err error) {
			report, err = t.runner.ScanImage(t.transport(ctx), t.options)
			return err
		})
	})
	if err != nil {
		return found{}, t.explain(err)
	}
	if report, err = t.runner.Filter(ctx, t.options, report); err != nil {
		return found{}, fmt.Errorf("filtering the findings: %w", t.explain(err))
	}
	return found{report}, nil
}

// writeFiles writes Trivy's own forms of the report.
func (t *trivy) writeFiles(ctx context.Context, f found, dir string) error {
	for _, file := range []struct {
		name   string
		format types.Format
		report types.Report
	}{
		{TrivyFile, types.FormatJSON, f.Report},
		{SARIFFile, types.FormatSarif, withValidLocations(f.Report)},
		{SBOMFile, types.FormatCycloneDX, f.Report},
	} {
		var out bytes.Buffer
		options := t.options
		options.Format = file.format
		options.SetOutputWriter(&out)
		if err := guarded(func() error { return trivyreport.Write(ctx, file.report, options) }); err != nil {
			return fmt.Errorf("writing %s: %w", file.name, errors.New(oneLine(err)))
		}
		if err := writeFile(filepath.Join(dir, file.name), out.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

// report takes over what scan.json says about the image's contents.
func (f found) report() Report {
	var r Report
	for _, result := range f.Results {
		r.Packages += len(result.Packages)
		for _, vulnerability := range result.Vulnerabilities {
			r.Findings = append(r.Findings, finding(vulnerability, result.Target))
		}
		for _, modified := range result.ModifiedFindings {
			if vulnerability, ok := modified.Finding.(types.DetectedVulnerability); ok {
				r.Suppressed = append(r.Suppressed, Suppressed{
					Finding:   finding(vulnerability, result.Target),
					Source:    modified.Source,
					Statement: modified.Statement,
				})
			}
		}
	}
	r.finish()
	return r
}

func finding(v types.DetectedVulnerability, target string) Finding {
	if v.PkgPath != "" {
		target = v.PkgPath
	}
	severity := v.Severity
	if !slices.Contains(severities, severity) {
		severity = "UNKNOWN"
	}
	return Finding{
		ID: v.VulnerabilityID, Package: v.PkgName, Installed: v.InstalledVersion, Fixed: v.FixedVersion,
		Severity: severity, Title: strings.Join(strings.Fields(v.Title), " "), Target: target,
	}
}

func trivyOptions(o Options, image string) (flag.Options, error) {
	databases, err := references(o, o.DatabaseRepositories, db.DefaultGCRRepository, db.DefaultGHCRRepository)
	if err != nil {
		return flag.Options{}, err
	}
	javaDatabases, err := references(o, o.JavaDatabaseRepositories, javadb.DefaultGCRRepository, javadb.DefaultGHCRRepository)
	if err != nil {
		return flag.Options{}, err
	}
	options := flag.Options{
		AppVersion:    trivyVersion(),
		GlobalOptions: flag.GlobalOptions{Insecure: o.Insecure, Timeout: o.Timeout, CacheDir: o.CacheDir, Quiet: true},
		CacheOptions:  flag.CacheOptions{CacheBackend: "fs"},
		DBOptions: flag.DBOptions{
			NoProgress: true, DBRepositories: databases, JavaDBRepositories: javaDatabases, SkipJavaDBUpdate: o.SkipDatabaseUpdate,
		},
		ImageOptions:   flag.ImageOptions{ImageSources: ftypes.ImageSources{ftypes.RemoteImageSource}},
		PackageOptions: flag.PackageOptions{PkgTypes: types.PkgTypes, PkgRelationships: ftypes.Relationships},
		ReportOptions: flag.ReportOptions{
			// The JSON report lists all packages and what was suppressed.
			ListAllPkgs: true, ShowSuppressed: true, IgnoreFile: o.IgnoreFile,
		},
		ScanOptions: flag.ScanOptions{
			Target: image, SkipFiles: o.SkipFiles, Parallel: 5,
			Scanners:          types.Scanners{types.VulnerabilityScanner, types.SBOMScanner},
			DetectionPriority: ftypes.PriorityPrecise,
			// No calls home, of either kind.
			SkipVersionCheck: true, DisableTelemetry: true,
		},
		VulnerabilityOptions: flag.VulnerabilityOptions{SkipVEXRepoUpdate: true, VulnSeveritySources: []dbtypes.SourceID{"auto"}},
	}
	for _, severity := range o.Severities {
		parsed, err := dbtypes.NewSeverity(severity)
		if err != nil {
			return flag.Options{}, fmt.Errorf("%w: severity %q: %w", ErrOptions, severity, err)
		}
		options.Severities = append(options.Severities, parsed)
	}
	if o.IgnoreUnfixed {
		for _, text := range dbtypes.Statuses {
			if status := dbtypes.NewStatus(text); status != dbtypes.StatusFixed {
				options.IgnoreStatuses = append(options.IgnoreStatuses, status)
			}
		}
	}
	if o.Platform != "" {
		platform, err := v1.ParsePlatform(o.Platform)
		if err != nil {
			return flag.Options{}, fmt.Errorf("%w: platform %q: %w", ErrOptions, o.Platform, err)
		}
		options.ImageOptions.Platform = ftypes.Platform{Platform: platform}
	}
	return options, nil
}

func checkPlatform(text string) error {
	if text == "" {
		return nil
	}
	if platform, err := v1.ParsePlatform(text); err != nil || platform.OS == "" || platform.Architecture == "" {
		return fmt.Errorf("%w: platform %q; write it like linux/amd64", ErrOptions, text)
	}
	return nil
}

func references(o Options, texts []string, defaults ...string) ([]name.Reference, error) {
	if len(texts) == 0 {
		texts = defaults
	}
	var parsed []name.Reference
	for _, text := range texts {
		reference, err := name.ParseReference(text, newRegistry(o).nameOptions()...)
		if err != nil {
			return nil, fmt.Errorf("%w: database repository %q: %s", ErrOptions, text, oneLine(err))
		}
		parsed = append(parsed, reference)
	}
	return parsed, nil
}

func defaultDatabaseRepositories() []string {
	return []string{db.DefaultGCRRepository, db.DefaultGHCRRepository}
}

// transport makes Trivy dial as this package does.
func (t *trivy) transport(ctx context.Context) context.Context {
	return xhttp.WithTransport(ctx, dialling{xhttp.NewTransport(xhttp.Options{Insecure: t.options.Insecure, Timeout: t.options.Timeout})})
}

type dialling struct{ inner xhttp.Transport }

// Build implements xhttp.Transport.
func (d dialling) Build(options ...xhttp.TransportOption) http.RoundTripper {
	return d.inner.Build(append(options, func(t *http.Transport) { t.DialContext = dial })...)
}

// explain is one line about an error of Trivy's, whose own are chains of a dozen parts.
func (t *trivy) explain(err error) error {
	text := oneLine(err)
	switch {
	case networkTrouble(err):
		host := "the registry"
		if reference, parseErr := name.ParseReference(t.options.Target); parseErr == nil {
			host = reference.Context().RegistryStr()
		}
		return explain(host, err)
	case strings.Contains(text, "Java DB"), strings.Contains(text, "java-db"):
		return fmt.Errorf("the image holds a JAR, and the Java database cannot be had: %s; pass --java-db-repository, or leave the file out with --skip-files", text)
	case strings.Contains(text, "db corrupted"), strings.Contains(text, "invalid database"):
		return fmt.Errorf("the vulnerability database is damaged: %s; scan again to download it anew", text)
	}
	return errors.New(text)
}

// withValidLocations is the report with locations that are URIs. The SARIF writer takes them for granted and panics at
// the first that is not, and both the names of images and the paths in them are for others to choose.
func withValidLocations(report types.Report) types.Report {
	report.Results = slices.Clone(report.Results)
	for i, result := range report.Results {
		report.Results[i].Target = validLocation(result.Target, result.Class)
		report.Results[i].Vulnerabilities = slices.Clone(result.Vulnerabilities)
		for j, vulnerability := range result.Vulnerabilities {
			report.Results[i].Vulnerabilities[j].PkgPath = validLocation(vulnerability.PkgPath, result.Class)
		}
	}
	return report
}

func validLocation(text string, class types.ResultClass) string {
	location := trivyreport.ToPathUri(text, class)
	if _, err := url.Parse(location); err == nil {
		return text
	}
	return (&url.URL{Path: location}).String()
}

// guarded turns a panic in Trivy, which reads files that others wrote, into an error.
func guarded(do func() error) (err error) {
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("the scanner failed on this image: %v", cause)
		}
	}()
	return do()
}

// trivyVersion is the version that this program was built with.
func trivyVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, module := range info.Deps {
			if module.Path == "github.com/aquasecurity/trivy" {
				return strings.TrimPrefix(module.Version, "v")
			}
		}
	}
	return "unknown"
}
