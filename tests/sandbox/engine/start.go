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
)

// start starts an engine on a host that has none, and waits until it answers.
func (p place) start(ctx context.Context, opts Options, built artifacts, key string) error {
	trees, err := ownHierarchies()
	if err != nil {
		return err
	}
	j, err := p.snapshot(ctx, key, trees)
	if err != nil {
		return fmt.Errorf("recording the host's state: %w", err)
	}
	if err := p.prepare(opts, built); err != nil {
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
	if err := p.launch(opts, built, j, trees); err != nil {
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
func (p place) prepare(opts Options, built artifacts) error {
	stamp := filepath.Join(p.state(), "sdk-digest")
	have, err := os.ReadFile(stamp)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if string(have) != built.digest {
		if err := os.RemoveAll(p.state()); err != nil {
			return fmt.Errorf("dropping the cache of another version: %w", err)
		}
	}
	for _, old := range []string{p.layer(), p.temporary()} {
		if err := os.RemoveAll(old); err != nil {
			return err
		}
	}
	for _, dir := range []string{p.scratch(), p.state(), p.temporary(), filepath.Join(p.layer(), "dagger")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	config, err := renderConfig(opts)
	if err != nil {
		return err
	}
	hosts, err := os.ReadFile("/etc/hosts")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if hosts, err = renderHosts(opts, hosts); err != nil {
		return err
	}
	// A copy, because /etc/resolv.conf may be a mount or a link to below /run, and the engine sees neither.
	resolv, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return err
	}
	script, err := embedded.ReadFile("sources/enter.sh.txt")
	if err != nil {
		return err
	}
	for path, data := range map[string][]byte{
		filepath.Join(p.layer(), "dagger/engine.json"): config,
		filepath.Join(p.layer(), "hosts"):              hosts,
		filepath.Join(p.layer(), "resolv.conf"):        resolv,
		p.script():                                     script,
		stamp:                                          []byte(built.digest),
	} {
		if err := os.WriteFile(path, data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// launch starts the first process of the engine's namespaces, which waits until its pid is recorded.
func (p place) launch(opts Options, built artifacts, j *journal, trees []hierarchy) error {
	goproxy, err := command{}.output(context.Background(), "go", "env", "GOPROXY")
	if err != nil {
		return err
	}
	const path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	environment := append([]string{
		path, "HOME=" + p.temporary(), "TMPDIR=" + p.temporary(),
		"DAGGER_GO_SDK_MANIFEST_DIGEST=" + built.digest,
		// The image's own modules first, then whatever this machine uses.
		"GOPROXY=file:///" + proxyDir + "," + strings.TrimSpace(string(goproxy)),
	}, engineEnvironment()...)

	n := network{Name: j.Network, Subnet: j.Subnet}
	cmd := exec.Command("sh", p.script(), "--addr", "unix://"+p.socket(), "--root", p.state(),
		"--network-name", n.Name, "--network-cidr", n.Subnet.String())
	cmd.Env = []string{
		path,
		"CGROUPS=" + groupLines(trees, j.Groups),
		"LAYERS_USR=" + filepath.Join(built.sdk, "usr") + ":" + filepath.Join(built.programs, "usr"),
		"LAYERS_OPT=" + filepath.Join(built.programs, "opt"),
		"LAYERS_ETC=" + p.layer(),
		"SCRATCH=" + p.scratch(),
		"ENGINE_ENV=" + strings.Join(environment, "\n"),
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
