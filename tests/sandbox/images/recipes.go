package images

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// revision is part of every key: raise it when the code that turns a root file system into layers changes its result.
const revision = "3"

const suite = "trixie"

// debianPath is PATH in every image with a shell.
const debianPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

//go:embed pause/main.go
var pauseSource []byte

// golangRootfs is Debian with what `go build` and `go mod download` need beside the toolchain. Debian 13 is what the
// official image is made of as well.
func golangRootfs() rootfs {
	return rootfs{suite: suite, packages: []string{"ca-certificates", "git"}}
}

// baseRootfs is Debian with PyTorch for CPUs. Python may be extended by `python3 -m venv --system-site-packages`, or by
// pip with --break-system-packages, as Debian wants it.
func baseRootfs() rootfs {
	return rootfs{
		suite:    suite,
		packages: []string{"ca-certificates", "python3", "python3-venv", "python3-pip"},
		onTop:    []string{"python3-torch", "python3-numpy"},
		// Debian's PyTorch depends on its own test programs and, through Open MPI, on AMD's compiler and GPU runtime and
		// on plugins that look at graphics hardware: 330 MB that a CPU image has no use for, all of it loaded only if
		// such hardware or such tests are there.
		absent: []string{
			"libtorch-test", "python3-expecttest", "python3-hypothesis",
			"libamdhip64-5", "libhsa-runtime64-1", "libhwloc-plugins",
		},
		user: "app", uid: 10001,
	}
}

func buildGolang(ctx context.Context, log io.Writer) (built, error) {
	env, err := goEnv(ctx, "GOROOT", "GOVERSION")
	if err != nil {
		return built{}, err
	}
	changed, err := changedGoEnv(ctx)
	if err != nil {
		return built{}, err
	}
	goroot, version := env[0], strings.TrimPrefix(env[1], "go")
	config := v1.Config{
		Env: []string{
			"PATH=/go/bin:/usr/local/go/bin:" + debianPath,
			"GOLANG_VERSION=" + version,
			"GOTOOLCHAIN=local",
			"GOPATH=/go",
		},
		Cmd:        []string{"bash"},
		WorkingDir: "/go",
		Labels: map[string]string{
			"org.opencontainers.image.title":       "golang",
			"org.opencontainers.image.description": "Go toolchain of the sandbox's host on Debian",
			"org.opencontainers.image.version":     version,
		},
	}
	// A host that gets its modules from elsewhere wants its builds to do so too.
	for _, key := range []string{"GOPROXY", "GOSUMDB", "GONOSUMDB", "GOPRIVATE"} {
		if value, ok := changed[key]; ok {
			config.Env = append(config.Env, key+"="+value)
		}
	}
	fs := golangRootfs()
	parts := append([]string{revision, version, strings.Join(config.Env, "\n")}, fs.key()...)
	dir, _, err := ensure(ctx, log, "image-golang", parts, func(ctx context.Context, dir string) error {
		layers, err := fs.build(ctx, dir, log)
		if err != nil {
			return err
		}
		toolchain, err := gorootLayer(ctx, dir, goroot)
		if err != nil {
			return err
		}
		return writeLayout(dir, config, append(layers, toolchain))
	})
	return built{dir: dir, repository: GolangRepository, tags: unique(GolangTag, version)}, err
}

func buildBase(ctx context.Context, log io.Writer) (built, error) {
	fs := baseRootfs()
	config := v1.Config{
		Env: []string{"PATH=" + debianPath, "LANG=C.UTF-8", "PYTHONUNBUFFERED=1"},
		Cmd: []string{"python3"},
		Labels: map[string]string{
			"org.opencontainers.image.title":       "base-pytorch-cpu",
			"org.opencontainers.image.description": "Debian " + suite + " with PyTorch for CPUs; user app (10001)",
			"org.opencontainers.image.licenses":    "Various; see /usr/share/doc/*/copyright",
		},
	}
	dir, key, err := ensure(ctx, log, "image-base", append([]string{revision}, fs.key()...), func(ctx context.Context, dir string) error {
		layers, err := fs.build(ctx, dir, log)
		if err != nil {
			return err
		}
		return writeLayout(dir, config, layers)
	})
	return built{dir: dir, repository: BaseRepository, tags: []string{key}}, err
}

func buildPause(ctx context.Context, log io.Writer) (built, error) {
	dir, _, err := ensure(ctx, log, "image-pause", []string{revision, string(pauseSource), runtime.Version()}, func(ctx context.Context, dir string) error {
		source := filepath.Join(dir, "main.go")
		if err := os.WriteFile(source, pauseSource, 0o644); err != nil {
			return err
		}
		binary := filepath.Join(dir, "pause")
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", binary, source)
		// Outside any module, whatever directory the caller is in.
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("compiling pause: %w: %s", err, strings.TrimSpace(string(out)))
		}
		pauseLayer, err := fileLayer(dir, binary, "pause")
		if err != nil {
			return err
		}
		config := v1.Config{Entrypoint: []string{"/pause"}, User: "65535:65535"}
		return writeLayout(dir, config, []*layer{pauseLayer})
	})
	return built{dir: dir, repository: PauseRepository, tags: []string{"1"}}, err
}

func goEnv(ctx context.Context, keys ...string) ([]string, error) {
	out, err := exec.CommandContext(ctx, "go", append([]string{"env"}, keys...)...).Output()
	if err != nil {
		return nil, fmt.Errorf("asking go for its environment: %w", err)
	}
	lines := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	if len(lines) != len(keys) {
		return nil, fmt.Errorf("asking go for its environment: %d answers to %d questions", len(lines), len(keys))
	}
	return lines, nil
}

// changedGoEnv is what somebody set to something else than go's defaults.
func changedGoEnv(ctx context.Context) (map[string]string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "-changed", "-json").Output()
	if err != nil {
		return nil, fmt.Errorf("asking go for its settings: %w", err)
	}
	changed := map[string]string{}
	if err := json.Unmarshal(out, &changed); err != nil {
		return nil, fmt.Errorf("asking go for its settings: %w", err)
	}
	return changed, nil
}

func unique(first, second string) []string {
	if first == second {
		return []string{first}
	}
	return []string{first, second}
}
