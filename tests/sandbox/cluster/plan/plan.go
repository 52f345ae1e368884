// Package plan is what the cluster package tells its node supervisor: where the node's namespace gets its files, its
// addresses and its programs. The supervisor is a process of its own, so the plan travels as a JSON file.
package plan

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// A Plan describes one node.
type Plan struct {
	// Hostname is the node's name in its UTS namespace.
	Hostname string `json:"hostname"`
	// Root is an empty directory on the host, on which the node's root file system is put together. Nothing is stored
	// in it: it is a tmpfs that only the node's mount namespace sees.
	Root string `json:"root"`
	// State is the file in which the supervisor records what would have to be cleaned up after it, see State.
	State string `json:"state"`
	// CgroupName is the name of the node's cgroup in every hierarchy.
	CgroupName string  `json:"cgroupName"`
	Network    Network `json:"network"`
	// Forwards are TCP forwarders that the supervisor runs in the host's network namespace.
	Forwards []Forward `json:"forwards"`
	// Mounts are host directories in the node's root, besides /usr.
	Mounts []Mount `json:"mounts"`
	// Files are small files in the node's root, by absolute path.
	Files map[string]string `json:"files"`
	// Sysctls hides kernel settings which are the whole machine's: programs in the node read the given value under
	// /proc/sys and write into a file of the node's own. Keys are paths below /proc/sys.
	Sysctls map[string]string `json:"sysctls"`
	// Programs run in the node, each as soon as everything it waits for is there, and again when it ends.
	Programs []Program `json:"programs"`
}

// Network is the node's link to the host and what is routed over it. Addresses are IPv4.
type Network struct {
	HostLink      string `json:"hostLink"`
	HostAddress   string `json:"hostAddress"`
	NodeAddress   string `json:"nodeAddress"`
	PrefixBits    int    `json:"prefixBits"`
	PodRange      string `json:"podRange"`
	ServiceRange  string `json:"serviceRange"`
	NodeInterface string `json:"nodeInterface"`
}

// A Forward hands TCP connections on. Connections from addresses outside From (a CIDR; empty: any) are closed at once.
type Forward struct {
	Listen string `json:"listen"`
	Target string `json:"target"`
	From   string `json:"from,omitempty"`
}

// A Mount is a directory or file of the host, bind-mounted into the node.
type Mount struct {
	Source   string `json:"source"`
	Target   string `json:"target"`
	ReadOnly bool   `json:"readOnly"`
}

// A Program is a process in the node. Output goes to /var/log/<name>.log there.
type Program struct {
	Name string   `json:"name"`
	Args []string `json:"args"`
	Env  []string `json:"env,omitempty"`
	// After lists what must answer before the program starts: tcp:ADDRESS, unix:PATH, https:URL (status 200, the
	// certificate is checked against CA) or done:NAME for a program that runs once.
	After []string `json:"after,omitempty"`
	// Once: the program is to end with status 0, and is not started again then.
	Once bool `json:"once,omitempty"`
	// CA is the PEM file for https: conditions, in the node.
	CA string `json:"ca,omitempty"`
}

// State is what the supervisor has done on the host. It is written before the deed, so that it holds whatever dies.
type State struct {
	// Supervisor and Init are pids on the host, with the kernel's start times (clock ticks since boot) to tell a pid
	// that was used again. Init is pid 1 of the node. 0: not started yet.
	Supervisor      int    `json:"supervisor"`
	SupervisorStart uint64 `json:"supervisorStart"`
	Init            int    `json:"init"`
	InitStart       uint64 `json:"initStart"`
	// Cgroups are the directories of the node's cgroup, one in each hierarchy.
	Cgroups []string `json:"cgroups"`
	// Controllers are those which had to be enabled for the children of the cgroup2 root.
	Controllers []string `json:"controllers,omitempty"`
}

// Read reads the JSON file at path into v.
func Read(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	return nil
}

// Write writes v as JSON to path, at once: a reader sees the old file or the new one.
func Write(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	if _, err := f.Write(append(data, '\n')); err != nil {
		_ = f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
