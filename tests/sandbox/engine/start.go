package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/greenlight-ci/greenlight/tests/sandbox/cache"
)

const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// engineRun is everything that makes one run of the engine what it is.
type engineRun struct {
	built       artifacts
	config      []byte   // /etc/dagger/engine.json
	hosts       []byte   // /etc/hosts
	resolv      []byte   // /etc/resolv.conf
	script      []byte   // enters the namespaces and starts the engine
	wrappers    string   // digest of the programs that come before the machine's own
	environment []string // of the engine
}

// key tells whether a run is the same as another.
func (r engineRun) key() string {
	parts := []string{r.built.programs, r.built.sdk, r.built.digest, string(r.config), string(r.hosts), string(r.resolv), string(r.script), r.wrappers}
	return cache.Key(append(parts, r.environment...)...)
}

// plan works out a run from the options and the host, and changes nothing.
func (p place) plan(ctx context.Context, opts Options, built artifacts) (engineRun, error) {
	r := engineRun{built: built}
	var err error
	if r.config, err = renderConfig(opts); err != nil {
		return r, err
	}
	hosts, err := os.ReadFile("/etc/hosts")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return r, err
	}
	if r.hosts, err = renderHosts(opts, hosts); err != nil {
		return r, err
	}
	// A copy, because /etc/resolv.conf may be a mount or a link to below /run, and the engine sees neither.
	if r.resolv, err = os.ReadFile("/etc/resolv.conf"); err != nil {
		return r, err
	}
	if r.script, err = embedded.ReadFile("sources/enter.sh.txt"); err != nil {
		return r, err
	}
	if r.wrappers, err = embeddedDigest("wrappers"); err != nil {
		return r, err
	}
	goproxy, err := command{}.output(ctx, "go", "env", "GOPROXY")
	if err != nil {
		return r, err
	}
	r.environment = append([]string{
		searchPath, "HOME=" + p.temporary(), "TMPDIR=" + p.temporary(),
		"DAGGER_GO_SDK_MANIFEST_DIGEST=" + built.digest,
		// What the Go SDK's containers get: the image's own modules first, then whatever this machine uses.
		"_DAGGER_ENGINE_SYSTEMENV_GOPROXY=file:///" + proxyDir + "," + strings.TrimSpace(string(goproxy)),
	}, proxyEnvironment()...)
	return r, nil
}

// start starts an engine on a host that has none, and waits until it answers.
func (p place) start(ctx context.Context, run engineRun) error {
	trees, err := ownHierarchies()
	if err != nil {
		return err
	}
	j, err := p.snapshot(ctx, run.key(), trees)
	if err != nil {
		return fmt.Errorf("recording the host's state: %w", err)
	}
	if err := p.prepare(run); err != nil {
		return err
	}
	if err := j.write(p.journal()); err != nil {
		return fmt.Errorf("recording the host's state: %w", err)
	}
	// From here on the host changes.
	for _, dir := range j.Directories {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	for _, group := range j.Groups {
		if err := createGroup(group); err != nil {
			return fmt.Errorf("making a control group: %w", err)
		}
	}
	if err := p.launch(run, j, trees); err != nil {
		return err
	}
	return p.await(ctx)
}

func ownHierarchies() ([]hierarchy, error) {
	groups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	trees := hierarchies(string(groups), string(mounts))
	if len(trees) == 0 {
		return nil, errors.New("no control groups are mounted: mount them at /sys/fs/cgroup")
	}
	return trees, nil
}

// prepare writes the files that the engine reads, and drops its cache if that was made with another Go SDK image: cache
// volumes are filled from the image once.
func (p place) prepare(run engineRun) error {
	stamp := filepath.Join(p.state(), "sdk-digest")
	have, err := os.ReadFile(stamp)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if string(have) != run.built.digest {
		if err := os.RemoveAll(p.state()); err != nil {
			return fmt.Errorf("dropping the cache of another version: %w", err)
		}
	}
	for _, old := range []string{p.etc(), p.wrappers(), p.temporary()} {
		if err := os.RemoveAll(old); err != nil {
			return err
		}
	}
	for _, dir := range []string{p.scratch(), p.state(), p.temporary(), filepath.Join(p.etc(), "dagger")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := writeWrappers(filepath.Join(p.wrappers(), "local/sbin")); err != nil {
		return err
	}
	for path, data := range map[string][]byte{
		filepath.Join(p.etc(), "dagger/engine.json"): run.config,
		filepath.Join(p.etc(), "hosts"):              run.hosts,
		filepath.Join(p.etc(), "resolv.conf"):        run.resolv,
		p.script():                                   run.script,
		stamp:                                        []byte(run.built.digest),
	} {
		if err := os.WriteFile(path, data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// writeWrappers writes the programs that come before the machine's own on the engine's search path.
func writeWrappers(dir string) error {
	if err := writeEmbedded("wrappers", dir); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := os.Chmod(filepath.Join(dir, entry.Name()), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// launch starts the first process of the engine's namespaces, which waits until its pid is recorded.
func (p place) launch(run engineRun, j *journal, trees []hierarchy) error {
	n := network{Name: j.Network, Subnet: j.Subnet}
	cmd := exec.Command("sh", p.script(), "--addr", "unix://"+p.socket(), "--root", p.state(),
		"--network-name", n.Name, "--network-cidr", n.Subnet.String())
	cmd.Env = []string{
		searchPath,
		"CGROUPS=" + groupLines(trees, j.Groups),
		"LAYERS_USR=" + p.wrappers() + ":" + filepath.Join(run.built.sdk, "usr") + ":" + filepath.Join(run.built.programs, "usr"),
		"LAYERS_OPT=" + filepath.Join(run.built.programs, "opt"),
		"LAYERS_ETC=" + p.etc(),
		"SCRATCH=" + p.scratch(),
		"ENGINE_ENV=" + strings.Join(run.environment, "\n"),
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}
	wait, release, err := os.Pipe()
	if err != nil {
		return err
	}
	defer wait.Close()
	defer release.Close()
	cmd.ExtraFiles = []*os.File{wait}
	if err := p.daemon().Start(cmd); err != nil {
		return err
	}
	_, err = release.WriteString("go\n")
	return err
}

func groupLines(trees []hierarchy, groups []string) string {
	var lines []string
	for i, tree := range trees {
		options := tree.Options
		if options == "" {
			options = "v2"
		}
		lines = append(lines, options+"\t"+tree.Mount+"\t"+groups[i])
	}
	return strings.Join(lines, "\n")
}

// await waits until the engine takes connections.
func (p place) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		conn, err := net.Dial("unix", p.socket())
		if err == nil {
			return conn.Close()
		}
		if _, running := p.daemon().Running(); !running {
			return fmt.Errorf("it ended: %s (all of it: %s)", p.daemon().LogTail(3), p.daemon().LogPath())
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("it does not answer: %w: %s (all of it: %s)", ctx.Err(), p.daemon().LogTail(3), p.daemon().LogPath())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func isNotEmpty(err error) bool {
	return errors.Is(err, syscall.ENOTEMPTY) || errors.Is(err, syscall.EEXIST) || errors.Is(err, syscall.EBUSY)
}
