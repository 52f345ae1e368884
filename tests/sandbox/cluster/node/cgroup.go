package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

const (
	cgroupRoot = "/sys/fs/cgroup"
	// cgroup2Magic is the file system type of a cgroup2 mount.
	cgroup2Magic = 0x63677270
)

// A cgroup is the node's in one hierarchy.
type cgroup struct {
	// options is what mounts this hierarchy: v1 controllers ("memory", "name=systemd"); empty for cgroup2.
	options string
	// directory is where the host sees it.
	directory string
}

// onlyCgroup2 says whether the machine has the one cgroup2 hierarchy and no v1 controllers.
func onlyCgroup2() (bool, error) {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(cgroupRoot, &fs); err != nil {
		return false, fmt.Errorf("looking at %s: %w", cgroupRoot, err)
	}
	return fs.Type == cgroup2Magic, nil
}

// plannedCgroups returns the cgroups that the node is to have. On v1 (and the hybrid layout) each is a child of the one
// that this process is in, so that limits of the caller's hold. On cgroup2 it is a child of the root: only there may a
// cgroup hand controllers to its children while it holds processes itself.
func plannedCgroups(name string) ([]cgroup, error) {
	unified, err := onlyCgroup2()
	if err != nil {
		return nil, err
	}
	if unified {
		return []cgroup{{directory: filepath.Join(cgroupRoot, name)}}, nil
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return v1Cgroups(string(own), string(mounts), name)
}

// v1Cgroups reads the v1 hierarchies from the texts of /proc/self/cgroup and /proc/self/mountinfo.
func v1Cgroups(own, mountinfo, name string) ([]cgroup, error) {
	points := map[string][2]string{} // hierarchy → where it is mounted, which of its cgroups is mounted there
	for _, line := range strings.Split(mountinfo, "\n") {
		before, after, ok := strings.Cut(line, " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 5 || len(right) < 3 || right[0] != "cgroup" {
			continue
		}
		for _, option := range strings.Split(right[2], ",") {
			points[option] = [2]string{left[4], left[3]}
		}
	}
	var found []cgroup
	for _, line := range strings.Split(strings.TrimSpace(own), "\n") {
		parts := strings.SplitN(line, ":", 3)
		if len(parts) != 3 || parts[1] == "" {
			continue
		}
		point, ok := points[strings.Split(parts[1], ",")[0]]
		if !ok {
			continue
		}
		inside, err := filepath.Rel(point[1], parts[2])
		if err != nil || strings.HasPrefix(inside, "..") {
			inside = ""
		}
		found = append(found, cgroup{options: parts[1], directory: filepath.Join(point[0], inside, name)})
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("no cgroup hierarchy is mounted below %s: mount cgroup2 there", cgroupRoot)
	}
	return found, nil
}

func (c cgroup) create() error {
	if err := os.Mkdir(c.directory, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("creating the node's cgroup: %w", err)
	}
	parent := filepath.Dir(c.directory)
	switch {
	case c.options == "":
		return enableControllers(parent)
	case slices.Contains(strings.Split(c.options, ","), "cpuset"):
		// A v1 cpuset starts empty and holds no process until it is filled.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			value, err := os.ReadFile(filepath.Join(parent, file))
			if err != nil {
				return fmt.Errorf("creating the node's cpuset: %w", err)
			}
			if err := os.WriteFile(filepath.Join(c.directory, file), value, 0o644); err != nil {
				return fmt.Errorf("creating the node's cpuset: %w", err)
			}
		}
	}
	return nil
}

func (c cgroup) enter(pid int) error {
	if err := os.WriteFile(filepath.Join(c.directory, "cgroup.procs"), []byte(fmt.Sprint(pid)), 0o644); err != nil {
		return fmt.Errorf("moving the node into its cgroup: %w", err)
	}
	return nil
}

// missingControllers are those that a cgroup2 directory has, but its children may not use.
func missingControllers(directory string) ([]string, error) {
	available, err := os.ReadFile(filepath.Join(directory, "cgroup.controllers"))
	if err != nil {
		return nil, err
	}
	enabled, err := os.ReadFile(filepath.Join(directory, "cgroup.subtree_control"))
	if err != nil {
		return nil, err
	}
	var missing []string
	for _, c := range strings.Fields(string(available)) {
		if !slices.Contains(strings.Fields(string(enabled)), c) {
			missing = append(missing, c)
		}
	}
	return missing, nil
}

// enableControllers lets the children of a cgroup2 directory use all controllers that it has itself.
func enableControllers(directory string) error {
	missing, err := missingControllers(directory)
	if err != nil {
		return err
	}
	for _, c := range missing {
		if err := os.WriteFile(filepath.Join(directory, "cgroup.subtree_control"), []byte("+"+c), 0o644); err != nil {
			return fmt.Errorf("giving children of %s the %s controller: %w", directory, c, err)
		}
	}
	return nil
}

// mountCgroups shows the node its own cgroups, and no others, at /sys/fs/cgroup below root. It is called in the node's
// cgroup namespace.
func mountCgroups(root string) error {
	top := filepath.Join(root, cgroupRoot)
	unified, err := onlyCgroup2()
	if err != nil {
		return err
	}
	if unified {
		if err := syscall.Mount("cgroup2", top, "cgroup2", 0, ""); err != nil {
			return fmt.Errorf("mounting cgroup2: %w", err)
		}
		// No cgroup but the real root may hold both processes and controllers: init goes to a leaf.
		leaf := filepath.Join(top, "init")
		if err := os.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte("0"), 0o644); err != nil {
			return fmt.Errorf("moving init to a leaf cgroup: %w", err)
		}
		return enableControllers(top)
	}
	if err := syscall.Mount("tmpfs", top, "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	for _, line := range strings.Split(strings.TrimSpace(string(own)), "\n") {
		parts := strings.SplitN(line, ":", 3)
		if len(parts) != 3 || parts[1] == "" {
			continue
		}
		point := filepath.Join(top, strings.TrimPrefix(parts[1], "name="))
		if err := os.MkdirAll(point, 0o755); err != nil {
			return err
		}
		if err := syscall.Mount("cgroup", point, "cgroup", 0, parts[1]); err != nil {
			return fmt.Errorf("mounting the %s cgroups: %w", parts[1], err)
		}
	}
	return nil
}
