package main

import (
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/greenlight-ci/greenlight/tests/sandbox/cluster/plan"
)

// passGate waits until the supervisor has put this process in its cgroups, then takes those as the root of a cgroup
// namespace. Only an exec carries that namespace over from this thread to the whole process.
func passGate(planPath string) error {
	gate := os.NewFile(gateFD, "gate")
	if _, err := io.ReadFull(gate, make([]byte, 1)); err != nil {
		return fmt.Errorf("the supervisor ended before the node began: %w", err)
	}
	_ = gate.Close()
	if err := syscall.Unshare(syscall.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("creating the node's cgroup namespace: %w", err)
	}
	return syscall.Exec("/proc/self/exe", []string{os.Args[0], stageInit, planPath}, os.Environ())
}

// initialise makes the node out of its namespaces and runs its programs. It returns only on error.
func initialise(p plan.Plan) error {
	if err := syscall.Sethostname([]byte(p.Hostname)); err != nil {
		return fmt.Errorf("naming the node: %w", err)
	}
	if err := makeRoot(p); err != nil {
		return fmt.Errorf("putting the node's file system together: %w", err)
	}
	if err := makeNetwork(p.Network); err != nil {
		return err
	}
	log.Println("the node's namespaces are ready")
	return runPrograms(p.Programs)
}

// makeRoot mounts a root file system at p.Root and moves into it. Of the host it shows /usr, read-only, and p.Mounts.
func makeRoot(p plan.Plan) error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := syscall.Mount("tmpfs", p.Root, "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	for _, dir := range []string{"dev", "etc", "home", "mnt", "opt", "proc", "root", "run", "sys", "tmp", "usr", "var/lib", "var/tmp", ".host"} {
		if err := os.MkdirAll(filepath.Join(p.Root, dir), 0o755); err != nil {
			return err
		}
	}
	if err := shareSystem(p.Root); err != nil {
		return err
	}
	for _, m := range p.Mounts {
		if err := bind(m.Source, filepath.Join(p.Root, m.Target), m.ReadOnly); err != nil {
			return err
		}
	}
	for path, content := range p.Files {
		path = filepath.Join(p.Root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	if err := mountKernel(p.Root); err != nil {
		return err
	}
	if err := makeDevices(filepath.Join(p.Root, "dev")); err != nil {
		return err
	}
	if err := hideSysctls(p.Root, p.Sysctls); err != nil {
		return err
	}
	if err := syscall.PivotRoot(p.Root, filepath.Join(p.Root, ".host")); err != nil {
		return fmt.Errorf("changing the root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := syscall.Unmount("/.host", syscall.MNT_DETACH); err != nil {
		return err
	}
	_ = os.Remove("/.host")
	// The kubelet wants mounts that pods make to be seen by the node.
	return syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_SHARED, "")
}

// shareSystem shows the host's programs and libraries, whether /bin and /lib are links into /usr or not.
func shareSystem(root string) error {
	if err := bind("/usr", filepath.Join(root, "usr"), true); err != nil {
		return err
	}
	for _, name := range []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32"} {
		info, err := os.Lstat("/" + name)
		if err != nil {
			continue
		}
		if info.Mode()&os.ModeSymlink != 0 {
			to, err := os.Readlink("/" + name)
			if err != nil {
				return err
			}
			if err := os.Symlink(to, filepath.Join(root, name)); err != nil {
				return err
			}
			continue
		}
		if err := bind("/"+name, filepath.Join(root, name), true); err != nil {
			return err
		}
	}
	for _, path := range []string{"/etc/alternatives", "/etc/ld.so.cache"} {
		if _, err := os.Stat(path); err != nil {
			continue
		}
		if err := bind(path, filepath.Join(root, path), true); err != nil {
			return err
		}
	}
	return nil
}

func bind(source, target string, readOnly bool) error {
	info, err := os.Stat(source)
	if err != nil {
		return err
	}
	if info.IsDir() {
		err = os.MkdirAll(target, 0o755)
	} else if err = os.MkdirAll(filepath.Dir(target), 0o755); err == nil {
		err = os.WriteFile(target, nil, 0o644)
	}
	if err != nil {
		return err
	}
	if err := syscall.Mount(source, target, "", syscall.MS_BIND|syscall.MS_REC, ""); err != nil {
		return fmt.Errorf("mounting %s: %w", source, err)
	}
	if !readOnly {
		return nil
	}
	if err := syscall.Mount("", target, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("mounting %s read-only: %w", source, err)
	}
	return nil
}

func mountKernel(root string) error {
	for _, m := range []struct{ kind, target, options string }{
		{"proc", "proc", ""},
		{"sysfs", "sys", ""},
		{"tmpfs", "run", "mode=755"},
		{"tmpfs", "tmp", "mode=1777"},
		{"tmpfs", "dev", "mode=755"},
	} {
		if err := syscall.Mount(m.kind, filepath.Join(root, m.target), m.kind, 0, m.options); err != nil {
			return fmt.Errorf("mounting %s: %w", m.kind, err)
		}
	}
	return mountCgroups(root)
}

// makeDevices fills /dev with what every container may have; devices of the host are not there.
func makeDevices(dev string) error {
	for _, d := range []struct {
		name         string
		major, minor int
	}{{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}} {
		path := filepath.Join(dev, d.name)
		if err := syscall.Mknod(path, syscall.S_IFCHR|0o666, d.major<<8|d.minor); err != nil {
			return fmt.Errorf("making /dev/%s: %w", d.name, err)
		}
		if err := os.Chmod(path, 0o666); err != nil { // mknod's mode is subject to the umask
			return err
		}
	}
	for name, to := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
		"ptmx": "pts/ptmx",
		// The kubelet reads the kernel's log for out-of-memory kills; it is the host's log, which is none of its business.
		"kmsg": "null",
	} {
		if err := os.Symlink(to, filepath.Join(dev, name)); err != nil {
			return err
		}
	}
	for _, m := range []struct{ kind, name, options string }{
		{"devpts", "pts", "newinstance,ptmxmode=0666,mode=620"},
		{"tmpfs", "shm", "mode=1777"},
		{"mqueue", "mqueue", ""},
	} {
		path := filepath.Join(dev, m.name)
		if err := os.Mkdir(path, 0o755); err != nil {
			return err
		}
		if err := syscall.Mount(m.kind, path, m.kind, 0, m.options); err != nil {
			return fmt.Errorf("mounting %s: %w", m.kind, err)
		}
	}
	return nil
}

// hideSysctls puts files of the node's own over settings that belong to the whole machine.
func hideSysctls(root string, values map[string]string) error {
	dir := filepath.Join(root, "run", "sysctl")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for name, value := range values {
		target := filepath.Join(root, "proc/sys", name)
		if _, err := os.Stat(target); err != nil {
			continue
		}
		source := filepath.Join(dir, strings.ReplaceAll(name, "/", "."))
		if err := os.WriteFile(source, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := syscall.Mount(source, target, "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("hiding %s: %w", name, err)
		}
	}
	return nil
}

// makeNetwork sets up the node's side of the link.
func makeNetwork(n plan.Network) error {
	batch := strings.Join([]string{
		"link set lo up",
		fmt.Sprintf("addr add %s/%d dev %s", n.NodeAddress, n.PrefixBits, n.NodeInterface),
		"link set " + n.NodeInterface + " up",
		// What no pod has (any more) is unreachable at once, and never leaves the node.
		"route add unreachable " + n.PodRange + " metric 10000",
		// The node itself needs a route to Services for kube-proxy to see its packets at all.
		fmt.Sprintf("route add %s dev lo src %s", n.ServiceRange, n.NodeAddress),
	}, "\n")
	if err := ip(batch); err != nil {
		return err
	}
	for _, s := range []struct{ name, value string }{
		{"net/ipv4/ip_forward", "1"},
		{"net/ipv4/conf/all/send_redirects", "0"},
	} {
		if err := os.WriteFile(filepath.Join("/proc/sys", s.name), []byte(s.value), 0o644); err != nil {
			return fmt.Errorf("setting %s in the node: %w", s.name, err)
		}
	}
	// A packet to a Service that kube-proxy has not translated, because it has no rules yet, must not pass: it would leave
	// a connection-tracking entry that swallows later connections from the same port for two minutes. These chains come
	// after kube-proxy's translation, so that they see only what it left alone.
	rules := fmt.Sprintf(`table ip greenlight {
	chain forward { type filter hook forward priority 10; ip daddr %[1]s reject; }
	chain output { type filter hook output priority 10; ip daddr %[1]s reject; }
}
`, n.ServiceRange)
	nft := exec.Command("nft", "-f", "-")
	nft.Stdin = strings.NewReader(rules)
	if out, err := nft.CombinedOutput(); err != nil {
		return fmt.Errorf("setting up the node's packet filter: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}
