package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/greenlight-ci/greenlight/tests/sandbox/cache"
	"github.com/greenlight-ci/greenlight/tests/sandbox/cluster/plan"
	"github.com/greenlight-ci/greenlight/tests/sandbox/process"
)

const (
	cgroupRoot = "/sys/fs/cgroup"
	// cgroupName is the node's cgroup in every hierarchy.
	cgroupName = "greenlight-node"
)

// directories are where a cluster keeps its files on the host.
type directories struct {
	// run holds what concerns the running cluster, below it are plan, state and key, and etc: certificates and settings.
	run, plan, state, key, etc, lock, kubeconfig, root string
	// etcd and kubelet are emptied between clusters, containerd is kept, logs are kept until the next cluster.
	etcd, kubelet, containerd, logs string
}

func openDirectories() (directories, error) {
	cacheRoot, err := cache.Root()
	if err != nil {
		return directories{}, err
	}
	run, data := filepath.Join(cacheRoot, "run"), filepath.Join(cacheRoot, "cluster")
	d := directories{
		run: run, plan: filepath.Join(run, "cluster", "plan.json"), state: filepath.Join(run, "cluster", "state.json"),
		key: filepath.Join(run, "cluster", "key"), etc: filepath.Join(run, "cluster", "etc"),
		root: filepath.Join(run, "cluster", "root"), lock: filepath.Join(run, "cluster.lock"),
		kubeconfig: filepath.Join(run, "kubeconfig"),
		etcd:       filepath.Join(data, "etcd"), kubelet: filepath.Join(data, "kubelet"),
		containerd: filepath.Join(data, "containerd"), logs: filepath.Join(data, "log"),
	}
	if err := os.MkdirAll(run, 0o755); err != nil {
		return directories{}, err
	}
	return d, nil
}

func (d directories) daemon() process.Daemon {
	return process.Daemon{Name: "cluster", Dir: d.run, Grace: 5 * time.Second}
}

// clear ends a cluster, whatever state it is in, and removes what it left behind except for containerd's images and the
// logs. It needs no more than the state file, so that it also clears up after a supervisor that was killed.
func (d directories) clear(ctx context.Context) error {
	if err := d.daemon().Stop(ctx); err != nil {
		return err
	}
	var state plan.State
	if err := plan.Read(d.state, &state); err != nil && !errors.Is(err, fs.ErrNotExist) {
		// A state that cannot be read names nothing to clear; the cgroups it would name are found again by the next start.
		state = plan.State{}
	}
	// The supervisor first: a start that was killed before it recorded the pid leaves it without a pid file.
	killExact(state.Supervisor, state.SupervisorStart)
	killExact(state.Init, state.InitStart)
	for _, dir := range state.Cgroups {
		// Whatever the file says, nothing but the node's own cgroups is removed, with what runs in them.
		if filepath.Base(dir) != cgroupName || !strings.HasPrefix(filepath.Clean(dir), cgroupRoot+"/") {
			continue
		}
		if err := removeCgroup(ctx, dir); err != nil {
			return err
		}
	}
	for _, controller := range state.Controllers {
		// Fails where somebody else has come to use it in the meantime, which is as well.
		_ = os.WriteFile(filepath.Join(cgroupRoot, "cgroup.subtree_control"), []byte("-"+controller), 0o644)
	}
	// Only the kernel's cleaning up of the node's network namespace would remove it otherwise, some time later.
	if _, err := os.Stat("/sys/class/net/" + hostLink); err == nil {
		_ = exec.Command("ip", "link", "del", hostLink).Run()
	}
	for _, path := range []string{d.kubeconfig, filepath.Dir(d.plan), d.etcd, d.kubelet} {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return nil
}

// killExact kills pid if it is still the process that started at the given time.
func killExact(pid int, started uint64) {
	if pid <= 1 || started == 0 || startTime(pid) != started {
		return
	}
	_ = syscall.Kill(pid, syscall.SIGKILL)
}

// startTime is the kernel's start time of a pid in clock ticks since boot, 0 if there is none.
func startTime(pid int) uint64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	if len(fields) < 20 {
		return 0
	}
	ticks, _ := strconv.ParseUint(fields[19], 10, 64)
	return ticks
}

// removeCgroup removes a cgroup and those below it, after killing what still runs there. Dead processes leave their
// cgroup late, so that it can take a few tries.
func removeCgroup(ctx context.Context, dir string) error {
	deadline := time.Now().Add(15 * time.Second)
	for {
		err := removeOnce(dir)
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("removing the node's cgroup: %w", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func removeOnce(dir string) error {
	var inside []string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		if entry.IsDir() {
			inside = append(inside, path)
		}
		return nil
	})
	if err != nil {
		return err
	}
	var failed error
	for i := len(inside) - 1; i >= 0; i-- {
		pids, _ := os.ReadFile(filepath.Join(inside[i], "cgroup.procs"))
		for _, line := range strings.Fields(string(pids)) {
			if pid, err := strconv.Atoi(line); err == nil && pid > 1 && pid != os.Getpid() {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		if err := os.Remove(inside[i]); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = err
		}
	}
	return failed
}
