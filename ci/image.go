package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"dagger/greenlight/internal/dagger"
)

// Labels on the images that the module builds.
const (
	// labelSource is the content digest of what an image was built from: context, Dockerfile, target and arguments.
	labelSource   = "dev.greenlight.source"
	labelVersion  = "org.opencontainers.image.version"
	labelRevision = "org.opencontainers.image.revision"
)

// serviceConfig is the part of greenlight.yaml that the module needs; `greenlight config` reads, checks and completes it.
type serviceConfig struct {
	Service string `json:"service"`
	Image   struct {
		Repository string            `json:"repository"`
		Context    string            `json:"context"`
		Dockerfile string            `json:"dockerfile"`
		Target     string            `json:"target"`
		Base       string            `json:"base"`
		BuildArgs  map[string]string `json:"buildArgs"`
	} `json:"image"`
	Scan struct {
		IgnoreFile string `json:"ignoreFile"`
	} `json:"scan"`
	Smoke struct {
		Cases string `json:"cases"`
	} `json:"smoke"`
}

// readConfig reads and checks the service's config. Errors about its content are usage errors.
func (m *Greenlight) readConfig(ctx context.Context, service *dagger.Directory, config string) (serviceConfig, error) {
	var parsed serviceConfig
	if path.IsAbs(config) || strings.HasPrefix(path.Clean(config), "..") {
		return parsed, usage("--config %q must be a path below --source", config)
	}
	ctr, err := m.container(ctx, greenlightTool, "")
	if err != nil {
		return parsed, err
	}
	args := []string{greenlightTool.name, "config", "--config", path.Clean(config)}
	// Nothing outside the source decides the answer, so it may come from the cache.
	after := ctr.
		WithMountedDirectory(serviceDir, service).
		WithWorkdir(serviceDir).
		WithExec(args, dagger.ContainerWithExecOpts{Expect: dagger.ReturnTypeAny})
	done, err := ended(ctx, after, args)
	if err != nil {
		return parsed, err
	}
	if done.failed() {
		return parsed, &ending{code: done.verdict(), reason: done.reason()}
	}
	if err := json.Unmarshal([]byte(done.stdout), &parsed); err != nil {
		return parsed, fmt.Errorf("reading the config: %w", err)
	}
	return parsed, nil
}

// image is what to build.
type image struct {
	config  serviceConfig
	service *dagger.Directory
	// path of the config, below service.
	path     string
	platform dagger.Platform
	version  string
	base     string
	// args are NAME=VALUE; they win over the config's.
	args []string
}

// revision is the part of the version after the last dash: v1.4.0-3f2a1c9 was built from 3f2a1c9.
func (i image) revision() string {
	if cut := strings.LastIndex(i.version, "-"); cut >= 0 {
		return i.version[cut+1:]
	}
	return ""
}

func (i image) baseRef() string {
	if i.base != "" {
		return i.base
	}
	return i.config.Image.Base
}

func (i image) context() *dagger.Directory {
	return i.service.Directory(path.Join(path.Dir(i.path), i.config.Image.Context))
}

// content is the context without the files of the gates: a limit or a golden case that changes makes no other image.
func (i image) content() *dagger.Directory {
	content := i.context()
	if name, inside := below(i.config.Image.Context, path.Base(i.path)); inside {
		content = content.WithoutFile(name)
	}
	if name, inside := below(i.config.Image.Context, i.config.Smoke.Cases); inside {
		content = content.WithoutDirectory(name)
	}
	return content
}

// below returns a path relative to a directory that it may be in; both are relative to the same place.
func below(dir, name string) (string, bool) {
	relative, err := filepath.Rel(path.Join(".", dir), path.Join(".", name))
	return relative, err == nil && relative != "." && filepath.IsLocal(relative)
}

// buildArgs are the arguments of the Dockerfile. VERSION, REVISION and BASE are always the module's.
func (i image) buildArgs() ([]dagger.BuildArg, error) {
	values := maps.Clone(i.config.Image.BuildArgs)
	if values == nil {
		values = map[string]string{}
	}
	for _, arg := range i.args {
		name, value, found := strings.Cut(arg, "=")
		if !found || name == "" {
			return nil, usage("--build-args %q is not NAME=VALUE", arg)
		}
		values[name] = value
	}
	values["VERSION"], values["REVISION"] = i.version, i.revision()
	if base := i.baseRef(); base != "" {
		if !strings.Contains(base, "@sha256:") {
			return nil, usage("the base %q is not pinned; write it as name@sha256:…", base)
		}
		values["BASE"] = base
	}
	var args []dagger.BuildArg
	for _, name := range slices.Sorted(maps.Keys(values)) {
		args = append(args, dagger.BuildArg{Name: name, Value: values[name]})
	}
	return args, nil
}

// sourceDigest identifies what the image is built from.
func (i image) sourceDigest(ctx context.Context, args []dagger.BuildArg) (string, error) {
	content, err := i.content().Digest(ctx)
	if err != nil {
		return "", usage("image.context: %v", err)
	}
	data, err := json.Marshal([]any{content, i.config.Image.Dockerfile, i.config.Image.Target, i.platform, args})
	if err != nil {
		return "", fmt.Errorf("identifying the source: %w", err)
	}
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:]), nil
}

// build is the image as a container. Nothing is built before it is asked for something.
func (i image) build(args []dagger.BuildArg, source string) *dagger.Container {
	ctr := i.context().
		DockerBuild(dagger.DirectoryDockerBuildOpts{
			Dockerfile: i.config.Image.Dockerfile,
			Target:     i.config.Image.Target,
			Platform:   i.platform,
			BuildArgs:  args,
		}).
		WithLabel(labelSource, source).
		WithLabel(labelVersion, i.version)
	if revision := i.revision(); revision != "" {
		ctr = ctr.WithLabel(labelRevision, revision)
	}
	return ctr
}

// buildRecord is build.json: what was built from what, for the report.
type buildRecord struct {
	Schema     int    `json:"schema"`
	Reference  string `json:"reference"`
	Repository string `json:"repository"`
	Digest     string `json:"digest"`
	Version    string `json:"version"`
	Revision   string `json:"revision"`
	Base       string `json:"base"`
	Dockerfile string `json:"dockerfile"`
	Target     string `json:"target"`
	Platform   string `json:"platform"`
	// Source is the content digest of all that went in.
	Source string `json:"source"`
	// Reused says that this version was published before from the same source, and was not built again.
	Reused    bool      `json:"reused"`
	StartedAt time.Time `json:"startedAt"`
	Seconds   float64   `json:"seconds"`
}

// publish builds the image and pushes it as repository:version. A version is immutable: one that is there already is
// reused if it came from the same source, and refused if not.
func (i image) publish(ctx context.Context) (buildRecord, error) {
	started := time.Now()
	record := buildRecord{
		Schema: 1, Repository: i.config.Image.Repository, Version: i.version, Revision: i.revision(), Base: i.baseRef(),
		Dockerfile: i.config.Image.Dockerfile, Target: i.config.Image.Target, Platform: string(i.platform), StartedAt: started.UTC(),
	}
	args, err := i.buildArgs()
	if err != nil {
		return record, err
	}
	if record.Source, err = i.sourceDigest(ctx, args); err != nil {
		return record, err
	}
	address := i.config.Image.Repository + ":" + i.version
	published, source, err := existing(ctx, address, i.platform)
	switch {
	case err != nil || published == "":
		// Not there, or not to be asked: publishing tells which.
		if published, err = i.build(args, record.Source).Publish(ctx, address); err != nil {
			return record, fmt.Errorf("building and publishing %s: %w", address, err)
		}
	case source == record.Source:
		record.Reused = true
	default:
		return record, usage("version %s is already published as %s, built from other source; a version is immutable, release under another one", i.version, published)
	}
	_, digest, found := strings.Cut(published, "@")
	if !found {
		return record, fmt.Errorf("publishing %s: the registry gave no digest", address)
	}
	record.Digest = digest
	record.Reference = record.Repository + "@" + digest
	record.Seconds = time.Since(started).Seconds()
	return record, nil
}

// existing looks up a published image and the source it was built from.
func existing(ctx context.Context, address string, platform dagger.Platform) (reference, source string, err error) {
	ctr := dag.Container(dagger.ContainerOpts{Platform: platform}).From(address)
	if reference, err = ctr.ImageRef(ctx); err != nil {
		return "", "", fmt.Errorf("looking up %s: %w", address, err)
	}
	if source, err = ctr.Label(ctx, labelSource); err != nil {
		return "", "", fmt.Errorf("looking up %s: %w", address, err)
	}
	return reference, source, nil
}

// publishProbe pushes the image that the gates run in the cluster, under a tag made of its content, and returns its
// reference by digest.
func (m *Greenlight) publishProbe(ctx context.Context, repository string, platform dagger.Platform) (string, error) {
	ctr, err := m.container(ctx, probeTool, platform)
	if err != nil {
		return "", err
	}
	key, err := ctr.File("/" + probeTool.name).Digest(ctx)
	if err != nil {
		return "", fmt.Errorf("building the probe: %w", err)
	}
	_, key, _ = strings.Cut(key, ":")
	published, err := ctr.
		WithUser("65532:65532").
		WithLabel("org.opencontainers.image.title", probeTool.name).
		Publish(ctx, repository+"-probe:"+key[:min(len(key), 16)])
	if err != nil {
		return "", fmt.Errorf("publishing the probe: %w", err)
	}
	_, digest, found := strings.Cut(published, "@")
	if !found {
		return "", fmt.Errorf("publishing the probe: the registry gave no digest")
	}
	return repository + "-probe@" + digest, nil
}
