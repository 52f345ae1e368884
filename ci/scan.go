package main

import (
	"context"
	"encoding/json"
	"fmt"
	"path"

	"dagger/greenlight/internal/dagger"
)

// scanner is how images are scanned.
type scanner struct {
	// database is the repository of Trivy's vulnerability database; "" is Trivy's own.
	database string
	// javaDatabase is the one that images with JARs need besides; "" is Trivy's own.
	javaDatabase string
	// platform to take from an image index.
	platform dagger.Platform
	// insecure accepts plain HTTP and unknown certificates.
	insecure bool
	// service holds ignoreFile, which is "" for none.
	service    *dagger.Directory
	ignoreFile string
}

// scan returns scan.json, scan.sarif, sbom.cdx.json and trivy.json of a published image. Whether the findings are too
// many is the scan gate's to say, not the scanner's.
func (s scanner) scan(ctx context.Context, m *Greenlight, ctr *dagger.Container, registry registryAccess, reference string) (*dagger.Directory, error) {
	ctr, _, err := registry.attach(ctx, ctr, reference)
	if err != nil {
		return nil, err
	}
	args := []string{scannerTool.name, reference, "--out", outDir, "--cache-dir", trivyDir, "--platform", string(s.platform)}
	if s.javaDatabase != "" {
		args = append(args, "--java-db-repository", s.javaDatabase)
	}
	if s.database != "" {
		args = append(args, "--db-repository", s.database)
	}
	if s.insecure {
		args = append(args, "--insecure")
	}
	if s.ignoreFile != "" {
		ctr = ctr.WithMountedDirectory(serviceDir, s.service)
		args = append(args, "--ignorefile", path.Join(serviceDir, s.ignoreFile))
	}
	done, err := execute(ctx, ctr.
		WithMountedTemp("/tmp").
		WithDirectory(outDir, dag.Directory()).
		// Trivy's caches are single-writer databases; a second scan waits instead of failing.
		WithMountedCache(trivyDir, m.TrivyCache, dagger.ContainerWithMountedCacheOpts{Sharing: dagger.CacheSharingModeLocked}), args)
	if err != nil {
		return nil, err
	}
	if done.failed() {
		return nil, &ending{code: min(done.code, codeUsage), reason: "scanning " + reference + ": " + done.reason()}
	}
	return done.after.Directory(outDir), nil
}

// Scan is what Trivy found in an image, by severity.
type Scan struct {
	// The image by digest.
	Reference string
	Critical  int
	High      int
	Medium    int
	Low       int
	Unknown   int
	// Findings that the ignore file suppresses.
	Ignored int
	// +private
	Files *dagger.Directory
}

// The findings as Greenlight's scan report (scan.json).
func (s *Scan) Json() *dagger.File { return s.Files.File("scan.json") }

// The findings as SARIF, for code scanning.
func (s *Scan) Sarif() *dagger.File { return s.Files.File("scan.sarif") }

// The software bill of materials as CycloneDX.
func (s *Scan) Sbom() *dagger.File { return s.Files.File("sbom.cdx.json") }

// All of the scan's files.
func (s *Scan) Directory() *dagger.Directory { return s.Files }

// Scan a published image with Trivy.
//
// Findings are reported, not judged: the scan gate of a release does that.
//
// +cache="never"
func (m *Greenlight) Scan(
	ctx context.Context,
	// Image to scan, best by digest.
	image string,
	// Directory that holds the ignore file.
	//
	// +optional
	// +ignore=["**/.git", "**/__pycache__"]
	source *dagger.Directory,
	// A .trivyignore or .trivyignore.yaml, below source.
	//
	// +optional
	ignoreFile string,
	// The registry, where only this machine can reach it: tcp://localhost:5000.
	//
	// +optional
	registry *dagger.Service,
	// User name at the registry.
	//
	// +optional
	registryUsername string,
	// Password or token at the registry.
	//
	// +optional
	registryPassword *dagger.Secret,
	// Repository of Trivy's vulnerability database. Default: Trivy's own.
	//
	// +optional
	trivyDb string,
	// Repository of Trivy's Java database, for images with JARs. Default: Trivy's own.
	//
	// +optional
	trivyJavaDb string,
	// Accept plain HTTP and unknown certificates from the registries that Trivy reads.
	//
	// +optional
	trivyInsecure bool,
	// Platform to take from an image index.
	//
	// +default="linux/amd64"
	platform dagger.Platform,
) (*Scan, error) {
	access := registryAccess{service: registry, username: registryUsername, password: registryPassword}
	if err := access.check(image); err != nil {
		return nil, exitWith(err)
	}
	if ignoreFile != "" && source == nil {
		return nil, exitWith(usage("--ignore-file is below --source, which is missing"))
	}
	ctr, err := m.container(ctx, scannerTool, "")
	if err != nil {
		return nil, err
	}
	files, err := scanner{
		database: trivyDb, javaDatabase: trivyJavaDb, platform: platform, insecure: trivyInsecure, service: source, ignoreFile: ignoreFile,
	}.scan(ctx, m, ctr, access, image)
	if err != nil {
		return nil, exitWith(err)
	}
	text, err := files.File("scan.json").Contents(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading scan.json: %w", err)
	}
	var content struct {
		Reference string `json:"reference"`
		Counts    struct {
			Critical, High, Medium, Low, Unknown, Ignored int
		} `json:"counts"`
	}
	if err := json.Unmarshal([]byte(text), &content); err != nil {
		return nil, fmt.Errorf("reading scan.json: %w", err)
	}
	c := content.Counts
	return &Scan{
		Reference: content.Reference, Critical: c.Critical, High: c.High, Medium: c.Medium, Low: c.Low, Unknown: c.Unknown, Ignored: c.Ignored, Files: files,
	}, nil
}
