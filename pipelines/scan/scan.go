// Package scan looks for known vulnerabilities in an image with Trivy and writes what it found as files. It does not
// judge: that is the scan gate's work, in another module, joined to this one by scan.json alone.
//
// Trivy keeps its database and HTTP transport in process globals, so a process runs one scan at a time.
package scan

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// ErrOptions is wrapped by errors about options: nothing was done.
var ErrOptions = errors.New("invalid scan option")

// Names of the files that Run writes to OutputDir.
const (
	ReportFile = "scan.json"
	TrivyFile  = "trivy.json"
	SARIFFile  = "scan.sarif"
	SBOMFile   = "sbom.cdx.json"
)

// Severities from worst to unknown.
var severities = []string{"CRITICAL", "HIGH", "MEDIUM", "LOW", "UNKNOWN"}

// Options says what to scan and how.
type Options struct {
	// Reference is the image: name@sha256:…, or name:tag, which is resolved once and scanned by digest.
	Reference string `json:"reference"`
	// OutputDir receives the files; it is made if it does not exist.
	OutputDir string `json:"outputDir"`
	// CacheDir keeps the vulnerability database and the analyses of layers. Default: greenlight/trivy in the user's cache
	// directory. Scans that share it run one after another.
	CacheDir string `json:"cacheDir,omitempty"`
	// DatabaseRepositories serve the vulnerability database; the first that answers is used. Default: Trivy's own.
	DatabaseRepositories []string `json:"databaseRepositories,omitempty"`
	// JavaDatabaseRepositories serve the database that images with JARs need. Default: Trivy's own.
	JavaDatabaseRepositories []string `json:"javaDatabaseRepositories,omitempty"`
	// SkipDatabaseUpdate uses the database in CacheDir as it is (air-gapped).
	SkipDatabaseUpdate bool `json:"skipDatabaseUpdate,omitempty"`
	// MaxDatabaseAge is how old the vulnerability database may be. Default 7 days.
	MaxDatabaseAge time.Duration `json:"maxDatabaseAge,omitempty"`
	// AllowOldDatabase scans with a database of any age.
	AllowOldDatabase bool `json:"allowOldDatabase,omitempty"`
	// Severities that are reported; the others are left out of every file. Default: all.
	Severities []string `json:"severities,omitempty"`
	// IgnoreUnfixed leaves findings without a fixed version out of every file.
	IgnoreUnfixed bool `json:"ignoreUnfixed,omitempty"`
	// IgnoreFile is a .trivyignore or .trivyignore.yaml; what it takes out is listed as suppressed. Default: none.
	IgnoreFile string `json:"ignoreFile,omitempty"`
	// SkipFiles are globs of paths in the image that are not looked at. Default: none.
	SkipFiles []string `json:"skipFiles,omitempty"`
	// Platform is os/arch[/variant] of the image to take from an index. Default linux/amd64.
	Platform string `json:"platform,omitempty"`
	// Insecure allows plain HTTP and certificates that cannot be verified, for any host. localhost, *.localhost and
	// 127.0.0.1 are asked over plain HTTP without it.
	Insecure bool `json:"insecure,omitempty"`
	// DockerConfig is a Docker config file with registry credentials, or the directory of its config.json. Default: what
	// the docker command would use.
	DockerConfig string `json:"dockerConfig,omitempty"`
	// Timeout ends the scan. Default 15m.
	Timeout time.Duration `json:"timeout,omitempty"`
	// Attempts is how often a download that breaks off is begun in all. Default 3.
	Attempts int `json:"attempts,omitempty"`
	// Pause is the wait before the second attempt; it doubles with each further one. Default 1s.
	Pause time.Duration `json:"pause,omitempty"`
	// Verbose lets Trivy's own log through to standard error.
	Verbose bool `json:"verbose,omitempty"`
	// Log receives progress lines. Default: discarded.
	Log io.Writer `json:"-"`
}

// Run scans the image and writes the four files; scan.json is written last, so that where it is the others are too. An
// earlier scan.json is removed first: a failed scan leaves none to be taken for its result.
func Run(ctx context.Context, o Options) (Report, error) {
	o, err := withDefaults(o)
	if err != nil {
		return Report{}, err
	}
	for _, dir := range []string{o.OutputDir, o.CacheDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return Report{}, fmt.Errorf("%w: %w", ErrOptions, err)
		}
	}
	if err := os.Remove(filepath.Join(o.OutputDir, ReportFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return Report{}, fmt.Errorf("removing the earlier report: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	forget, err := useDockerConfig(o.DockerConfig)
	if err != nil {
		return Report{}, err
	}
	defer forget()

	report, err := run(ctx, o)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil {
		return Report{}, fmt.Errorf("the scan did not end within %s; give it more with --timeout", o.Timeout)
	}
	return report, err
}

func run(ctx context.Context, o Options) (Report, error) {
	started := time.Now()
	registry := newRegistry(o)
	image, err := registry.resolve(ctx, o.Reference)
	if err != nil {
		return Report{}, fmt.Errorf("looking up image %s: %w", o.Reference, err)
	}
	unlock, err := lock(ctx, o.CacheDir, o.Log)
	if err != nil {
		return Report{}, err
	}
	defer unlock()

	database := database{dir: filepath.Join(o.CacheDir, "db"), registry: registry, options: o}
	if err := database.prepare(ctx); err != nil {
		return Report{}, err
	}
	if database.source.Repository != "" {
		o.DatabaseRepositories = []string{database.source.Repository}
	}
	trivy, err := openTrivy(ctx, o, image.String(), database.fresh)
	if err != nil {
		return Report{}, err
	}
	defer trivy.close(ctx)
	info, err := database.confirm()
	if err != nil {
		return Report{}, err
	}
	fmt.Fprintf(o.Log, "scanning %s\n", image)
	found, err := trivy.scan(ctx)
	if err != nil {
		return Report{}, fmt.Errorf("scanning %s: %w", image, err)
	}
	report := found.report()
	report.Schema = Schema
	report.Reference, report.Digest = image.String(), image.DigestStr()
	report.StartedAt = started.UTC().Truncate(time.Millisecond)
	report.TrivyVersion = trivyVersion()
	report.Database = info
	report.Options = ScanOptions{Severities: o.Severities, IgnoreUnfixed: o.IgnoreUnfixed}
	if err := trivy.writeFiles(ctx, found, o.OutputDir); err != nil {
		return Report{}, err
	}
	report.Seconds = time.Since(started).Seconds()
	if err := writeJSON(filepath.Join(o.OutputDir, ReportFile), report); err != nil {
		return Report{}, err
	}
	return report, nil
}

func withDefaults(o Options) (Options, error) {
	if o.Log == nil {
		o.Log = io.Discard
	}
	if o.Reference == "" {
		return o, fmt.Errorf("%w: no image reference", ErrOptions)
	}
	if o.OutputDir == "" {
		return o, fmt.Errorf("%w: no output directory", ErrOptions)
	}
	if o.CacheDir == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			return o, fmt.Errorf("%w: no cache directory, and none can be derived: %w", ErrOptions, err)
		}
		o.CacheDir = filepath.Join(dir, "greenlight", "trivy")
	}
	if len(o.Severities) == 0 {
		o.Severities = slices.Clone(severities)
	}
	for i, severity := range o.Severities {
		o.Severities[i] = strings.ToUpper(strings.TrimSpace(severity))
		if !slices.Contains(severities, o.Severities[i]) {
			return o, fmt.Errorf("%w: severity %q is unknown; known: %s", ErrOptions, severity, strings.Join(severities, ", "))
		}
	}
	if o.MaxDatabaseAge < 0 || o.Timeout < 0 || o.Pause < 0 {
		return o, fmt.Errorf("%w: a duration must not be negative", ErrOptions)
	}
	setDefault(&o.MaxDatabaseAge, 7*24*time.Hour)
	setDefault(&o.Timeout, 15*time.Minute)
	setDefault(&o.Attempts, 3)
	setDefault(&o.Pause, time.Second)
	if err := checkPlatform(o.Platform); err != nil {
		return o, err
	}
	return o, checkIgnoreFile(o.IgnoreFile)
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}
