package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"

	"github.com/greenlight-ci/greenlight/tests/sandbox/cache"
)

const (
	contentDir  = "usr/local/share/dagger/content" // where the engine looks for images that came with it
	digestFile  = "manifest-digest"
	proxyDir    = "usr/local/share/goproxy"
	sdkRevision = "1" // part of the cache's key: raise it when the steps below change
)

// sdkPackages are the Debian packages of the SDK's image: git reads the caller's settings, git and go want a shell.
func sdkPackages() []string { return []string{"dash", "git"} }

// sdkReplaced are the modules that the SDK's own go.mod replaces, by the version given here; generated modules take the
// replacement over once they require them, so that both versions must be in the image.
func sdkReplaced() (modules []string, version string) {
	const otel = "go.opentelemetry.io/otel/"
	return []string{otel + "exporters/otlp/otlplog/otlploggrpc", otel + "exporters/otlp/otlplog/otlploghttp", otel + "log", otel + "sdk/log"}, "v0.16.0"
}

// buildSDK makes the image in which the engine generates and compiles Go modules, as an OCI layout, and returns the
// directory that holds contentDir and the digest of the image's manifest.
func buildSDK(ctx context.Context, log io.Writer, programs string) (dir, digest string, err error) {
	sources, err := embeddedDigest("sdk")
	if err != nil {
		return "", "", err
	}
	key := cache.Key(append(sdkPackages(), sdkRevision, filepath.Base(programs), runtime.Version(), sources)...)
	dir, err = cache.Build(ctx, "dagger-go-sdk", key, func(ctx context.Context, dir string) error {
		fmt.Fprintln(log, "engine: making the image of Dagger's Go SDK (a few minutes, once)")
		s := sdkBuild{dir: dir, log: log, programs: programs, warm: filepath.Join(dir, "warm"), rootfs: filepath.Join(dir, "rootfs")}
		return s.run(ctx)
	})
	if err != nil {
		return "", "", err
	}
	data, err := os.ReadFile(filepath.Join(dir, digestFile))
	if err != nil {
		return "", "", fmt.Errorf("reading the Go SDK image's digest: %w", err)
	}
	return dir, strings.TrimSpace(string(data)), nil
}

type sdkBuild struct {
	dir, programs string
	warm          string // becomes the layer with codegen, the module cache, the build cache and the file proxy
	rootfs        string // becomes the layer with the Debian packages
	log           io.Writer
	goroot        string
}

func (s *sdkBuild) run(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("it takes root to make the image: run the sandbox as root")
	}
	out, err := command{}.output(ctx, "go", "env", "GOROOT")
	if err != nil {
		return err
	}
	s.goroot = strings.TrimSpace(string(out))
	if err := s.unpackPackages(ctx); err != nil {
		return fmt.Errorf("unpacking Debian packages: %w", err)
	}
	version, commit, err := s.libraryVersion(ctx)
	if err != nil {
		return fmt.Errorf("finding the Go SDK's version: %w", err)
	}
	if err := s.fetchModules(ctx, version); err != nil {
		return fmt.Errorf("fetching the Go SDK's modules: %w", err)
	}
	if err := writeProxy(filepath.Join(s.warm, "go/pkg/mod/cache/download"), filepath.Join(s.warm, proxyDir), version, commit); err != nil {
		return fmt.Errorf("writing the module proxy: %w", err)
	}
	if err := s.compile(ctx, commit); err != nil {
		return fmt.Errorf("compiling the Go SDK's modules: %w", err)
	}
	if err := s.writeImage(); err != nil {
		return fmt.Errorf("writing the image: %w", err)
	}
	for _, done := range []string{s.warm, s.rootfs} {
		if err := os.RemoveAll(done); err != nil {
			return err
		}
	}
	return nil
}

// unpackPackages unpacks packages and all that they depend on without running their scripts, from the sources that the
// machine's own apt uses.
func (s *sdkBuild) unpackPackages(ctx context.Context) error {
	archives := filepath.Join(s.dir, "archives")
	defer os.RemoveAll(archives)
	for _, dir := range []string{filepath.Join(archives, "partial"), s.rootfs} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	// With an empty status file apt takes nothing as installed.
	status := filepath.Join(archives, "status")
	if err := os.WriteFile(status, nil, 0o644); err != nil {
		return err
	}
	args := []string{
		"-qq", "-y", "--no-install-recommends", "--download-only", "-o", "Dir::State::status=" + status,
		"-o", "Dir::Cache::archives=" + archives, "-o", "APT::Sandbox::User=root", "install",
	}
	if err := (command{Log: s.log}).run(ctx, "apt-get", append(args, sdkPackages()...)...); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(archives, "*.deb"))
	if err != nil {
		return err
	}
	for _, deb := range debs {
		if err := (command{}).run(ctx, "dpkg-deb", "-x", deb, s.rootfs); err != nil {
			return err
		}
	}
	for _, unused := range []string{"usr/share/doc", "usr/share/locale", "usr/share/man", "usr/share/perl*", "usr/lib/*/perl*"} {
		paths, err := filepath.Glob(filepath.Join(s.rootfs, unused))
		if err != nil {
			return err
		}
		for _, path := range paths {
			if err := os.RemoveAll(path); err != nil {
				return err
			}
		}
	}
	bundle, err := os.ReadFile("/etc/ssl/certs/ca-certificates.crt")
	if err != nil {
		return err
	}
	files := map[string][]byte{
		"etc/ssl/certs/ca-certificates.crt": bundle,
		// Makes the engine add certificates that the machine learns to trust later.
		"etc/debian_version": []byte("12\n"),
		"etc/passwd":         []byte("root:x:0:0:root:/root:/bin/sh\n"),
		"etc/group":          []byte("root:x:0:\n"),
	}
	for name, data := range files {
		path := filepath.Join(s.rootfs, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			return err
		}
	}
	tmp := filepath.Join(s.rootfs, "tmp")
	if err := os.MkdirAll(tmp, 0o755); err != nil {
		return err
	}
	return os.Chmod(tmp, os.ModeSticky|0o777)
}

// libraryVersion finds which release of the Go library the engine asks for, and by which commit.
func (s *sdkBuild) libraryVersion(ctx context.Context) (version, commit string, err error) {
	upstream, err := downloadModule(ctx, s.dir, daggerModule+"@"+Version)
	if err != nil {
		return "", "", err
	}
	source, err := os.ReadFile(filepath.Join(upstream, "core/sdk/go_sdk.go"))
	if err != nil {
		return "", "", err
	}
	match := regexp.MustCompile(`goSDKLibVersion = "([0-9a-f]{40})" // (v[0-9.]+)`).FindSubmatch(source)
	if match == nil {
		return "", "", fmt.Errorf("the source of Dagger %s does not say it where it used to", Version)
	}
	return string(match[2]), string(match[1]), nil
}

// fetchModules fills the image's module cache with everything that generated modules need, in all versions that they may
// ask for.
func (s *sdkBuild) fetchModules(ctx context.Context, version string) error {
	work := filepath.Join(s.dir, "modules")
	defer os.RemoveAll(work)
	if err := writeEmbedded("sdk", work); err != nil {
		return err
	}
	gopath := filepath.Join(s.warm, "go")
	goCommand := command{Dir: work, Log: s.log, Env: append(moduleEnvironment(),
		"GOFLAGS=-buildvcs=false -modcacherw -mod=mod", "GOPATH="+gopath, "GOMODCACHE="+filepath.Join(gopath, "pkg/mod"))}
	replaced, by := sdkReplaced()
	replace := []string{"mod", "edit"}
	for _, module := range replaced {
		replace = append(replace, "-replace="+module+"="+module+"@"+by)
	}
	for _, args := range [][]string{
		{"mod", "edit", "-require=dagger.io/dagger@" + version},
		{"mod", "tidy"},
		{"mod", "edit", "-require=dagger.io/dagger@" + Version},
		{"mod", "tidy"},
		replace,
		{"mod", "tidy"},
	} {
		if err := goCommand.run(ctx, "go", args...); err != nil {
			return err
		}
	}
	return nil
}

// compile does in the image, without network, what the engine's code generator does for a new module and for one that
// exists, so that a missing module fails here and not in somebody's release.
func (s *sdkBuild) compile(ctx context.Context, commit string) error {
	work := filepath.Join(s.warm, "tmp/module")
	defer os.RemoveAll(filepath.Join(s.warm, "tmp"))
	if err := writeEmbedded("sdk", work); err != nil {
		return err
	}
	replaced, by := sdkReplaced()
	replace := []string{"mod", "edit"}
	for _, module := range replaced {
		replace = append(replace, "-replace="+module+"="+module+"@"+by)
	}
	for _, args := range [][]string{
		{"get", "-u", "dagger.io/dagger@" + commit},
		{"mod", "tidy"},
		{"build", "-ldflags", "-s -w", "-o", "/dev/null", "."},
		replace,
		{"get", "-u", "dagger.io/dagger@" + commit},
		{"mod", "tidy"},
		{"build", "-ldflags", "-s -w", "-o", "/dev/null", "."},
	} {
		if err := s.inImage(ctx, append([]string{"-C", "/tmp/module"}, args...)...); err != nil {
			return fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
		}
	}
	return nil
}

func (s *sdkBuild) inImage(ctx context.Context, args ...string) error {
	script, err := embedded.ReadFile("sources/sdk/in-image.sh.txt")
	if err != nil {
		return err
	}
	tail := &tailWriter{limit: 2048}
	cmd := exec.CommandContext(ctx, "sh", append([]string{"-c", string(script), "in-image", s.warm, s.goroot}, args...)...)
	cmd.Stdout = io.MultiWriter(s.log, tail)
	cmd.Stderr = cmd.Stdout
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w: %s", err, tail.lines(4))
	}
	return nil
}
