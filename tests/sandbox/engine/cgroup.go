package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// hierarchy is one mounted tree of control groups and this process's place in it.
type hierarchy struct {
	// Options mount it again: controllers of version 1 ("cpu,cpuacct", "none,name=systemd"), or "" for version 2.
	Options string
	// Mount is its mount point.
	Mount string
	// Own is the directory of this process's group.
	Own string
}

// hierarchies finds the control groups of a process from the content of /proc/self/cgroup and /proc/self/mountinfo. It
// serves hosts with version 1, version 2, or both. Trees that are not mounted are left out.
func hierarchies(groups, mountinfo string) []hierarchy {
	var found []hierarchy
	for line := range strings.Lines(groups) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 {
			continue
		}
		controllers, own := fields[1], fields[2]
		for entry := range strings.Lines(mountinfo) {
			root, mount, kind, super, ok := parseMount(entry)
			if !ok {
				continue
			}
			options := ""
			switch {
			case kind == "cgroup2" && controllers == "":
			case kind == "cgroup" && controllers != "" && hasAll(super, strings.Split(controllers, ",")):
				options = controllers
				if strings.HasPrefix(options, "name=") {
					options = "none," + options
				}
			default:
				continue
			}
			// The mount may show a part of the tree only, as in a container.
			inside, ok := below(root, own)
			if !ok {
				continue
			}
			found = append(found, hierarchy{Options: options, Mount: mount, Own: path.Join(mount, inside)})
			break
		}
	}
	return found
}

// parseMount reads one line of mountinfo.
func parseMount(line string) (root, mount, kind string, super []string, ok bool) {
	before, after, ok := strings.Cut(line, " - ")
	left, right := strings.Fields(before), strings.Fields(after)
	if !ok || len(left) < 5 || len(right) < 3 {
		return "", "", "", nil, false
	}
	return left[3], left[4], right[0], strings.Split(right[2], ","), true
}

func hasAll(have, want []string) bool {
	for _, w := range want {
		found := false
		for _, h := range have {
			found = found || h == w
		}
		if !found {
			return false
		}
	}
	return true
}

func below(root, name string) (string, bool) {
	if root == "/" {
		return name, true
	}
	rest, ok := strings.CutPrefix(name, root)
	if ok && (rest == "" || rest[0] == '/') {
		return rest, true
	}
	// Inside a cgroup namespace the own group is "/" whatever the mount's root is called.
	return name, name == "/"
}

// createGroup makes a group that processes can join.
func createGroup(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	// In version 1 a group of the cpuset controller takes no process until it has processors and memory.
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		target := filepath.Join(dir, name)
		have, err := os.ReadFile(target)
		if err != nil || strings.TrimSpace(string(have)) != "" {
			continue
		}
		parent, err := os.ReadFile(filepath.Join(filepath.Dir(dir), name))
		if err != nil || strings.TrimSpace(string(parent)) == "" {
			continue
		}
		if err := os.WriteFile(target, parent, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// removeGroups kills every process in the groups and below them, and removes the groups.
func removeGroups(ctx context.Context, dirs []string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for _, dir := range dirs {
		for {
			err := removeGroup(dir)
			if err == nil {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("removing the control group %s: %w", dir, err)
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
	return nil
}

func removeGroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.IsDir() {
			if err := removeGroup(filepath.Join(dir, entry.Name())); err != nil {
				return err
			}
		}
	}
	procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, field := range strings.Fields(string(procs)) {
		// Processes of a namespace that this one cannot see are listed as 0.
		if pid, err := strconv.Atoi(field); err == nil && pid > 1 && pid != os.Getpid() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
