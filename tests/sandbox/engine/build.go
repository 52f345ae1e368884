package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/greenlight-ci/greenlight/tests/sandbox/cache"
)

const (
	daggerModule  = "github.com/dagger/dagger"
	runcModule    = "github.com/opencontainers/runc"
	runcVersion   = "v1.4.2"
	cniModule     = "github.com/containernetworking/plugins"
	cniVersion    = "v1.9.0"
	ansicode      = "github.com/danielgatis/go-ansicode@v1.0.14"
	midterm       = "github.com/vito/midterm"
	midtermUsed   = "v0.2.5"
	otelGo        = "github.com/dagger/otel-go"
	otelGoUsed    = "v1.43.1-0.20260515012101-af7cd0684887"
	buildModule   = "greenlight.invalid/engine"
	cniPluginDir  = "opt/cni/bin"
	buildRevision = "1" // part of the cache's key: raise it when the steps below change
)

// artifacts are the finished builds. Both directories are laid over the root file system of the engine.
type artifacts struct {
	programs string // usr/local/bin, usr/bin, opt/cni/bin
	sdk      string // usr/local/share/dagger/content
	digest   string // of the Go SDK image's manifest
}

func build(ctx context.Context, log io.Writer) (artifacts, error) {
	programs, err := buildPrograms(ctx, log)
	if err != nil {
		return artifacts{}, err
	}
	sdk, digest, err := buildSDK(ctx, log, programs)
	if err != nil {
		return artifacts{}, err
	}
	return artifacts{programs: programs, sdk: sdk, digest: digest}, nil
}

func buildPrograms(ctx context.Context, log io.Writer) (string, error) {
	sources, err := embeddedDigest("standins", "engine.sum.txt")
	if err != nil {
		return "", err
	}
	key := cache.Key(buildRevision, Version, runcVersion, cniVersion, runtime.Version(), runtime.GOARCH, sources)
	return cache.Build(ctx, "dagger-engine", key, func(ctx context.Context, dir string) error {
		fmt.Fprintf(log, "engine: compiling Dagger %s, runc and CNI plugins (several minutes, once)\n", Version)
		for _, sub := range []string{"usr/local/bin", "usr/bin", cniPluginDir, "sdk"} {
			if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
				return err
			}
		}
		if err := compileDagger(ctx, log, dir); err != nil {
			return err
		}
		if err := compileRunc(ctx, log, dir); err != nil {
			return err
		}
		if err := compilePlugins(ctx, log, dir); err != nil {
			return err
		}
		// The engine looks for these beside its own programs; Debian has them in sbin.
		for _, name := range []string{"xtables-legacy-multi", "xtables-nft-multi"} {
			if err := os.Symlink("../sbin/"+name, filepath.Join(dir, "usr/bin", name)); err != nil {
				return err
			}
		}
		return os.Symlink("dial-stdio", filepath.Join(dir, "usr/bin/buildctl"))
	})
}

// compileDagger builds Dagger's own programs in a module that requires Dagger's, under Dagger's own version choices.
func compileDagger(ctx context.Context, log io.Writer, dir string) error {
	work := filepath.Join(dir, "source")
	defer os.RemoveAll(work)
	if err := writeEmbedded("standins", filepath.Join(work, "standins")); err != nil {
		return err
	}
	upstream, err := downloadModule(ctx, work, daggerModule+"@"+Version)
	if err != nil {
		return err
	}
	if err := prepareModule(ctx, work, upstream); err != nil {
		return err
	}
	names := map[string]string{
		"engine":    "usr/local/bin/dagger-engine",
		"dagger":    "usr/local/bin/dagger",
		"init":      "usr/local/bin/dagger-init",
		"codegen":   "sdk/codegen",
		"dialstdio": "usr/bin/dial-stdio",
		"dnsname":   cniPluginDir + "/dnsname",
	}
	out := filepath.Join(work, "bin")
	// The client refuses an engine of another version, and both take theirs from the linker.
	versions := fmt.Sprintf("-s -w -X %[1]s/engine.Version=%[2]s -X %[1]s/engine.Tag=%[2]s", daggerModule, Version)
	args := []string{"build", "-mod=mod", "-trimpath", "-tags", "dfexcludepatterns,dfparents", "-ldflags", versions, "-o", out + "/"}
	for name := range names {
		args = append(args, daggerModule+"/cmd/"+name)
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	goCommand := command{Dir: work, Log: log, Env: moduleEnvironment("CGO_ENABLED=0")}
	if err := goCommand.run(ctx, "go", args...); err != nil {
		return fmt.Errorf("compiling Dagger: %w", err)
	}
	for name, target := range names {
		if err := os.Rename(filepath.Join(out, name), filepath.Join(dir, target)); err != nil {
			return err
		}
	}
	return nil
}

// prepareModule turns Dagger's go.mod and go.sum into ones that the module proxy can satisfy: the modules that it does
// not serve become stand-ins or the nearest version that it has.
func prepareModule(ctx context.Context, work, upstream string) error {
	gomod, err := os.ReadFile(filepath.Join(upstream, "go.mod"))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(work, "go.mod"), gomod, 0o644); err != nil {
		return err
	}
	if err := (command{Dir: work}).run(ctx, "go", append([]string{"mod", "edit"}, moduleEdits()...)...); err != nil {
		return fmt.Errorf("editing Dagger's go.mod: %w", err)
	}
	sum, err := os.ReadFile(filepath.Join(upstream, "go.sum"))
	if err != nil {
		return err
	}
	more, err := embedded.ReadFile("sources/engine.sum.txt")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(work, "go.sum"), append(sum, more...), 0o644)
}

func moduleEdits() []string {
	return []string{
		"-module=" + buildModule,
		"-dropreplace=dagger.io/dagger",
		"-require=dagger.io/dagger@" + Version,
		"-require=" + daggerModule + "@" + Version,
		"-require=" + ansicode,
		"-replace=" + midterm + "=" + midterm + "@" + midtermUsed,
		"-replace=" + otelGo + "=" + otelGo + "@" + otelGoUsed,
		"-replace=" + daggerModule + "/engine/distconsts=./standins/distconsts",
		"-replace=github.com/vito/tuist=./standins/tuist",
		"-replace=github.com/vito/tuist/teav1=./standins/teav1",
		"-replace=github.com/vito/dang=./standins/dang",
	}
}

func compileRunc(ctx context.Context, log io.Writer, dir string) error {
	// Static, because it runs inside root file systems that have no C library; with seccomp, which the engine asks for.
	c := command{Dir: dir, Log: log, Env: moduleEnvironment("CGO_ENABLED=1", "GOBIN="+filepath.Join(dir, "usr/local/bin"))}
	flags := "-s -w -extldflags=-static -X main.version=" + strings.TrimPrefix(runcVersion, "v")
	err := c.run(ctx, "go", "install", "-trimpath", "-tags", "seccomp netgo osusergo", "-ldflags", flags, runcModule+"@"+runcVersion)
	if err != nil {
		return fmt.Errorf("compiling runc (it needs gcc, pkg-config and libseccomp-dev): %w", err)
	}
	return nil
}

func compilePlugins(ctx context.Context, log io.Writer, dir string) error {
	c := command{Dir: dir, Log: log, Env: moduleEnvironment("CGO_ENABLED=0", "GOBIN="+filepath.Join(dir, cniPluginDir))}
	args := []string{"install", "-trimpath", "-ldflags", "-s -w"}
	for _, plugin := range []string{"main/bridge", "main/loopback", "meta/firewall", "ipam/host-local"} {
		args = append(args, cniModule+"/plugins/"+plugin+"@"+cniVersion)
	}
	if err := c.run(ctx, "go", args...); err != nil {
		return fmt.Errorf("compiling the CNI plugins: %w", err)
	}
	return nil
}

// moduleEnvironment keeps the flags and workspace of whoever runs the sandbox out of these builds.
func moduleEnvironment(more ...string) []string {
	return append([]string{"GOFLAGS=-buildvcs=false", "GOWORK=off", "GOEXPERIMENT="}, more...)
}

// downloadModule returns the directory of the module in the module cache.
func downloadModule(ctx context.Context, work, module string) (string, error) {
	out, err := command{Dir: work, Env: moduleEnvironment()}.output(ctx, "go", "mod", "download", "-json", module)
	var result struct{ Dir, Error string }
	if jsonErr := json.Unmarshal(out, &result); err == nil && jsonErr != nil {
		err = jsonErr
	}
	if result.Error != "" {
		err = errors.New(result.Error)
	}
	if err != nil {
		return "", fmt.Errorf("fetching %s: %w", module, err)
	}
	return result.Dir, nil
}
