package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"path"
	"strings"

	"dagger/greenlight/internal/dagger"
)

// The places of things in the containers that the stages run in.
const (
	serviceDir   = "/service"
	outDir       = "/out"
	scanDir      = "/scan"
	secretsDir   = "/run/greenlight"
	trivyDir     = "/cache/trivy"
	certificates = "/etc/ssl/certs/ca-certificates.crt"
)

// tool is one of the programs that the stages run in.
type tool struct {
	// name of the binary.
	name string
	// module is the directory of its Go module, below the repository's root.
	module string
	// pkg is its main package, below module.
	pkg string
	// env is what the compiler needs besides.
	env map[string]string
}

var (
	greenlightTool = tool{name: "greenlight", module: ".", pkg: "./cmd/greenlight"}
	probeTool      = tool{name: "greenlight-probe", module: ".", pkg: "./cmd/greenlight-probe"}
	// Trivy is the reason for the second module, and needs the experiment to compile.
	scannerTool = tool{name: "greenlight-scan", module: "pipelines/scan", pkg: "./cmd/greenlight-scan", env: map[string]string{"GOEXPERIMENT": "jsonv2"}}
)

// toolchain is the container that compiles the stage binaries.
func (m *Greenlight) toolchain() *dagger.Container {
	ctr := dag.Container().
		From(m.GoImage).
		WithEnvVariable("CGO_ENABLED", "0").
		WithEnvVariable("GOTOOLCHAIN", "local").
		WithEnvVariable("GOFLAGS", "-mod=readonly").
		WithEnvVariable("GOMODCACHE", "/go/pkg/mod").
		WithEnvVariable("GOCACHE", "/root/.cache/go-build").
		WithMountedCache("/go/pkg/mod", m.GoModCache).
		WithMountedCache("/root/.cache/go-build", m.GoBuildCache)
	if m.GoProxy != "" {
		ctr = ctr.WithEnvVariable("GOPROXY", m.GoProxy)
	}
	if m.GoSumDB != "" {
		ctr = ctr.WithEnvVariable("GOSUMDB", m.GoSumDB)
	}
	return ctr
}

// source is the part of the repository that the tool is compiled from, so that a change elsewhere compiles nothing.
func (m *Greenlight) source(t tool) *dagger.Directory {
	if t.module != "." {
		return dag.Directory().WithDirectory(t.module, m.ModuleSource.Directory(t.module))
	}
	return m.ModuleSource.WithoutDirectory(scannerTool.module)
}

// binary is the tool for the platform; "" is the engine's own. It is compiled unless the caller brought it.
func (m *Greenlight) binary(ctx context.Context, t tool, platform dagger.Platform) (*dagger.File, error) {
	if m.Tools != nil {
		brought, err := m.Tools.Exists(ctx, t.name)
		if err != nil {
			return nil, fmt.Errorf("looking for %s in --tools: %w", t.name, err)
		}
		if brought {
			return m.Tools.File(t.name), nil
		}
	}
	ctr := m.toolchain().
		WithMountedDirectory("/src", m.source(t)).
		WithWorkdir(path.Join("/src", t.module))
	for name, value := range t.env {
		ctr = ctr.WithEnvVariable(name, value)
	}
	if platform != "" {
		os, arch, _ := strings.Cut(string(platform), "/")
		arch, _, _ = strings.Cut(arch, "/")
		ctr = ctr.WithEnvVariable("GOOS", os).WithEnvVariable("GOARCH", arch)
	}
	target := path.Join("/compiled", t.name)
	// No VCS stamp and no paths: the same source gives the same bytes on every machine.
	return ctr.
		WithExec([]string{"go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", target, t.pkg}).
		File(target), nil
}

// container is the tool in an image of its own, with CA certificates and nothing else.
func (m *Greenlight) container(ctx context.Context, t tool, platform dagger.Platform) (*dagger.Container, error) {
	binary, err := m.binary(ctx, t, platform)
	if err != nil {
		return nil, err
	}
	target := path.Join("/", t.name)
	return dag.Container(dagger.ContainerOpts{Platform: platform}).
		WithFile(certificates, dag.Container().From(m.GoImage).File(certificates)).
		WithEnvVariable("SSL_CERT_FILE", certificates).
		WithFile(target, binary, dagger.ContainerWithFileOpts{Permissions: 0o755}).
		WithEnvVariable("PATH", "/").
		WithEntrypoint([]string{target}), nil
}

// outcome is how a command ended.
type outcome struct {
	code   int
	stdout string
	stderr string
	after  *dagger.Container
}

// failed says whether the command ended with another code than 0.
func (o outcome) failed() bool { return o.code != 0 }

// verdict is the command's exit code; one that greenlight does not give, as after a kill, is a failure.
func (o outcome) verdict() int {
	if o.code < 0 || o.code > codeLocked {
		return codeFailed
	}
	return o.code
}

// reason is the line in which the command said why it failed: the last that it wrote to stderr.
func (o outcome) reason() string {
	lines := strings.Split(strings.TrimSpace(o.stderr), "\n")
	last := strings.TrimSpace(lines[len(lines)-1])
	for _, prefix := range []string{"Error: ", "error: ", "greenlight: ", "greenlight-scan: "} {
		last = strings.TrimPrefix(last, prefix)
	}
	if last == "" {
		return fmt.Sprintf("ended with code %d and gave no reason", o.code)
	}
	return asCalled(last)
}

// asCalled names what was mounted into a container as the caller passed it.
func asCalled(message string) string { return strings.ReplaceAll(message, secretsDir+"/", "--") }

// execute runs a tool's command that looks at the outside world or acts on it. It is never answered from the cache: an earlier
// run says nothing about now. An error means that it could not run; how it ended is in the outcome.
func execute(ctx context.Context, ctr *dagger.Container, args []string) (outcome, error) {
	after := ctr.
		WithEnvVariable("GREENLIGHT_RUN", rand.Text()).
		WithExec(args, dagger.ContainerWithExecOpts{Expect: dagger.ReturnTypeAny})
	return ended(ctx, after, args)
}

// ended waits for a container's last command and tells how it ended.
func ended(ctx context.Context, after *dagger.Container, args []string) (outcome, error) {
	o := outcome{after: after}
	var err error
	if o.code, err = after.ExitCode(ctx); err != nil {
		return o, fmt.Errorf("running %s: %w", strings.Join(args[:min(len(args), 2)], " "), err)
	}
	if o.stdout, err = after.Stdout(ctx); err != nil {
		return o, fmt.Errorf("reading the output of %s: %w", args[0], err)
	}
	if o.stderr, err = after.Stderr(ctx); err != nil {
		return o, fmt.Errorf("reading the messages of %s: %w", args[0], err)
	}
	return o, nil
}
