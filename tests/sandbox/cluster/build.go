package cluster

import (
	"bytes"
	"context"
	"embed"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/greenlight-ci/greenlight/tests/sandbox/cache"
)

// sources holds two Go modules, as .txt files because a nested go.mod would hide the folder from go:embed: one with
// Kubernetes and what shares its dependencies (etcd, CoreDNS, the fake GPU plugin), one with containerd, runc and the
// CNI plugins. Their versions are in the go.mod.txt files.
//
//go:embed source
var sources embed.FS

// programSources are the sources of the programs that are part of this module, to be built wherever the caller is.
//
//go:embed node/*.go pause/*.go plan/*.go
var programSources embed.FS

// binaries are the directories of the built programs.
type binaries struct {
	kubernetes, runtime, node string
}

// A goBuild is one run of go build.
type goBuild struct {
	output, pkg, tags, ldflags string
	cgo                        bool
}

const stripped = "-s -w"

func build(ctx context.Context, log io.Writer) (binaries, error) {
	if log == nil {
		log = io.Discard
	}
	var b binaries
	var err error
	if b.node, err = buildNode(ctx, log); err != nil {
		return b, err
	}
	if b.runtime, err = buildRuntime(ctx, log); err != nil {
		return b, err
	}
	b.kubernetes, err = buildKubernetes(ctx, log)
	return b, err
}

func buildNode(ctx context.Context, log io.Writer) (string, error) {
	files, err := embedded(programSources, ".")
	if err != nil {
		return "", err
	}
	const here = "tests/sandbox/cluster/"
	module := map[string]string{"go.mod": "module github.com/greenlight-ci/greenlight\n\ngo 1.26.0\n"}
	for name, content := range files {
		if !strings.HasSuffix(name, "_test.go") {
			module[here+name] = content
		}
	}
	builds := []goBuild{
		{output: "node", pkg: "./" + here + "node", ldflags: stripped},
		{output: "pause", pkg: "./" + here + "pause", ldflags: stripped},
	}
	return makeBuild(ctx, log, "cluster-node", "the node's supervisor", module, builds, func(dir string) error {
		return packPause(filepath.Join(dir, "pause.tar"), filepath.Join(dir, "pause"))
	})
}

func buildRuntime(ctx context.Context, log io.Writer) (string, error) {
	module, err := embedded(sources, "source/runtime")
	if err != nil {
		return "", err
	}
	const (
		tags       = "no_btrfs,no_zfs,no_devmapper,netgo,osusergo"
		containerd = "github.com/containerd/containerd/v2"
		plugins    = "github.com/containernetworking/plugins/plugins"
		runc       = "github.com/opencontainers/runc"
	)
	builds := []goBuild{
		{
			output: "containerd", pkg: "./containerd", tags: tags,
			ldflags: stripped + " -X " + containerd + "/version.Version=" + version(module["go.mod"], containerd),
		},
		{output: "containerd-shim-runc-v2", pkg: containerd + "/cmd/containerd-shim-runc-v2", tags: tags, ldflags: stripped},
		// Without seccomp runc refuses the profiles that pods ask for.
		{
			output: "runc", pkg: runc, tags: "seccomp,netgo,osusergo", cgo: true,
			ldflags: stripped + " -extldflags -static -X main.version=" + strings.TrimPrefix(version(module["go.mod"], runc), "v"),
		},
	}
	for _, plugin := range []string{"main/ptp", "main/loopback", "ipam/host-local", "meta/portmap"} {
		builds = append(builds, goBuild{output: filepath.Base(plugin), pkg: plugins + "/" + plugin, tags: tags, ldflags: stripped})
	}
	return makeBuild(ctx, log, "cluster-runtime", "containerd, runc and the CNI plugins", module, builds, func(dir string) error {
		return os.Symlink("containerd", filepath.Join(dir, "ctr"))
	})
}

func buildKubernetes(ctx context.Context, log io.Writer) (string, error) {
	module, err := embedded(sources, "source/kubernetes")
	if err != nil {
		return "", err
	}
	const tags = "notest,grpcnotrace"
	kubernetes := version(module["go.mod"], "k8s.io/kubernetes")
	numbers := strings.SplitN(strings.TrimPrefix(kubernetes, "v"), ".", 3)
	const versions = "k8s.io/component-base/version."
	ldflags := stripped + " -X " + versions + "gitVersion=" + kubernetes + " -X " + versions + "gitMajor=" + numbers[0] +
		" -X " + versions + "gitMinor=" + numbers[1] + " -X " + versions + "gitTreeState=clean"
	builds := []goBuild{
		{output: "etcd", pkg: "go.etcd.io/etcd/server/v3", tags: tags, ldflags: stripped},
		{output: "coredns", pkg: "./coredns", tags: tags, ldflags: stripped},
		{output: "fake-gpu-plugin", pkg: "./gpu", tags: tags, ldflags: stripped},
		{output: "kubernetes", pkg: "./node", tags: tags, ldflags: ldflags},
	}
	what := "Kubernetes " + kubernetes + ", etcd and CoreDNS (once per machine, about 650 seconds of CPU)"
	return makeBuild(ctx, log, "cluster-kubernetes", what, module, builds, func(dir string) error {
		for _, name := range []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl"} {
			if err := os.Symlink("kubernetes", filepath.Join(dir, name)); err != nil {
				return err
			}
		}
		return nil
	})
}

// makeBuild builds programs from a module's files, once for each set of files, flags and Go version, and returns the
// directory of the programs. finish adds to it what is not compiled.
func makeBuild(ctx context.Context, log io.Writer, name, what string, module map[string]string, builds []goBuild, finish func(dir string) error) (string, error) {
	parts := []string{"1", runtime.Version(), runtime.GOARCH, fmt.Sprint(builds), sandboxImage}
	for _, file := range slices.Sorted(maps.Keys(module)) {
		parts = append(parts, file, module[file])
	}
	return cache.Build(ctx, name, cache.Key(parts...), func(ctx context.Context, dir string) error {
		fmt.Fprintln(log, "cluster: building", what)
		source := filepath.Join(dir, "source")
		if err := writeFiles(source, module); err != nil {
			return err
		}
		for _, b := range builds {
			began := time.Now()
			if err := b.run(ctx, log, source, filepath.Join(dir, b.output)); err != nil {
				return err
			}
			fmt.Fprintf(log, "cluster: built %s (%.0f s)\n", b.output, time.Since(began).Seconds())
		}
		if err := finish(dir); err != nil {
			return err
		}
		return os.RemoveAll(source)
	})
}

func (b goBuild) run(ctx context.Context, log io.Writer, source, output string) error {
	if b.cgo {
		if err := exec.CommandContext(ctx, "pkg-config", "--exists", "libseccomp").Run(); err != nil {
			return fmt.Errorf("%s needs libseccomp to build: install the packages %s", b.output, strings.Join(DebianPackages(), " "))
		}
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-mod=readonly", "-tags", b.tags, "-ldflags", b.ldflags, "-o", output, b.pkg)
	cmd.Dir = source
	cgo := "0"
	if b.cgo {
		cgo = "1"
	}
	// Settings of the caller's own build must neither fail this one nor make a second copy of it in the build cache.
	cmd.Env = append(os.Environ(), "CGO_ENABLED="+cgo, "GOFLAGS=", "GOWORK=off", "GOEXPERIMENT=", "GOOS=linux", "GOARCH="+runtime.GOARCH)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	began := time.Now()
	ticker := time.NewTicker(30 * time.Second)
	defer ticker.Stop()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Run() }()
	for {
		select {
		case <-ticker.C:
			fmt.Fprintf(log, "cluster: still building %s (%.0f s)\n", b.output, time.Since(began).Seconds())
		case err := <-ended:
			if err != nil {
				return fmt.Errorf("go build %s: %w: %s", b.pkg, err, lastLines(out.String(), 5))
			}
			return nil
		}
	}
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], " | ")
}

// embedded returns the files below dir by their path there, without the ending .txt.
func embedded(from embed.FS, dir string) (map[string]string, error) {
	files := map[string]string{}
	err := fs.WalkDir(from, dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := from.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		files[strings.TrimSuffix(name, ".txt")] = string(data)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the embedded sources: %w", err)
	}
	return files, nil
}

func writeFiles(dir string, files map[string]string) error {
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// version returns the version that a go.mod requires of a module.
func version(goMod, module string) string {
	for _, line := range strings.Split(goMod, "\n") {
		fields := strings.Fields(strings.TrimPrefix(strings.TrimSpace(line), "require "))
		if len(fields) >= 2 && fields[0] == module && strings.HasPrefix(fields[1], "v") {
			return fields[1]
		}
	}
	return ""
}
