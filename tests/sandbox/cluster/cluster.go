// Package cluster runs a one-node Kubernetes cluster on a bare Linux machine, with nothing but Go modules and a few of
// the distribution's packages (see DebianPackages). The node lives in one set of private namespaces: of the host it
// sees /usr, read-only; what it leaves on the host is one network link, its cgroups and files under the cache directory,
// and Down removes them. It needs root.
//
// Everything is real (API server, scheduler, kubelet, containerd, runc, kube-proxy, CoreDNS) except the GPUs: the node
// offers FAKE nvidia.com/gpu devices through the real device plugin API. Scheduling on them is exclusive as with real
// ones; there is no GPU behind them.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/greenlight-ci/greenlight/tests/sandbox/cache"
	"github.com/greenlight-ci/greenlight/tests/sandbox/cluster/plan"
)

// readyWithin is how long a node may take until it is ready. Unloaded machines need about 5 s.
const readyWithin = 2 * time.Minute

// Options say what cluster to run.
type Options struct {
	// RegistryPort is the port on the host's loopback of the registry that pods' images come from. Default 15000. The
	// node pulls docker.io images and those of registry.localhost:<RegistryPort> and localhost:<RegistryPort> from it,
	// over plain HTTP. It need not run before an image is pulled.
	RegistryPort int
	// GPUs is how many fake GPUs the node offers. Default 2; -1 for none.
	GPUs int
	// Log gets progress, one line each. Default: nowhere.
	Log io.Writer
}

// Info says how to reach a cluster.
type Info struct {
	// Kubeconfig is the path of the administrator's kubeconfig. Its server is https://127.0.0.1:16443.
	Kubeconfig string
	// HostAddr and NodeAddr are the two ends of the link between host and node. Pods see the host as HostAddr. The host
	// reaches pod and Service addresses directly, by routes that exist while the cluster does.
	HostAddr, NodeAddr string
	// NsenterPID is pid 1 of the node, as the host counts: nsenter --target <pid> --all enters the node.
	NsenterPID int
	// Kubectl is the path of a kubectl that fits.
	Kubectl string
}

func (o Options) withDefaults() (Options, error) {
	if o.RegistryPort == 0 {
		o.RegistryPort = 15000
	}
	if o.RegistryPort < 1 || o.RegistryPort > 65535 {
		return o, fmt.Errorf("registry port %d: must be 1 to 65535", o.RegistryPort)
	}
	switch {
	case o.GPUs == 0:
		o.GPUs = 2
	case o.GPUs < 0:
		o.GPUs = 0
	}
	if o.Log == nil {
		o.Log = io.Discard
	}
	return o, nil
}

// DebianPackages are the packages that building and running a cluster takes on Debian 12 or newer.
func DebianPackages() []string {
	return []string{"gcc", "iproute2", "libc6-dev", "libseccomp-dev", "nftables", "pkg-config"}
}

// Build makes the binaries of a cluster, unless this machine has them. The first time takes about 700 seconds of CPU.
func Build(ctx context.Context, log io.Writer) error {
	_, err := build(ctx, log)
	return err
}

// Up starts a cluster, or returns at once if one with the same options runs and is well. It returns when pods can be
// scheduled and Services and their names answer. The cluster outlives the caller; Down ends it.
func Up(ctx context.Context, o Options) (Info, error) {
	o, err := o.withDefaults()
	if err != nil {
		return Info{}, fmt.Errorf("starting the cluster: %w", err)
	}
	if err := checkHost(); err != nil {
		return Info{}, fmt.Errorf("starting the cluster: %w", err)
	}
	built, err := build(ctx, o.Log)
	if err != nil {
		return Info{}, err
	}
	d, err := openDirectories()
	if err != nil {
		return Info{}, fmt.Errorf("starting the cluster: %w", err)
	}
	unlock, err := cache.Lock(ctx, d.lock)
	if err != nil {
		return Info{}, fmt.Errorf("waiting for another start or stop of the cluster: %w", err)
	}
	defer unlock()

	snapshotter, err := d.snapshotter()
	if err != nil {
		return Info{}, fmt.Errorf("starting the cluster: %w", err)
	}
	node := nodeConfig{plan: d.makePlan(o, built, snapshotter), files: settings(o, snapshotter)}
	key := node.key()
	if info, ok := d.running(ctx, key, o, built); ok {
		fmt.Fprintln(o.Log, "cluster: runs already")
		return info, nil
	}
	info, err := d.start(ctx, node, o, built)
	if err != nil {
		return Info{}, fmt.Errorf("starting the cluster: %w", err)
	}
	return info, nil
}

// Down ends the cluster and undoes what it did to the host. What containerd has pulled stays in the cache directory for
// the next cluster; all other state is gone. It is no error if no cluster runs.
func Down(ctx context.Context, log io.Writer) error {
	if log == nil {
		log = io.Discard
	}
	d, err := openDirectories()
	if err != nil {
		return fmt.Errorf("stopping the cluster: %w", err)
	}
	unlock, err := cache.Lock(ctx, d.lock)
	if err != nil {
		return fmt.Errorf("waiting for another start or stop of the cluster: %w", err)
	}
	defer unlock()
	began := time.Now()
	if err := d.clear(ctx); err != nil {
		return fmt.Errorf("stopping the cluster: %w", err)
	}
	fmt.Fprintf(log, "cluster: down (%.1f s)\n", time.Since(began).Seconds())
	return nil
}

// running returns the cluster that runs, if it is the wanted one and well.
func (d directories) running(ctx context.Context, key string, o Options, built binaries) (Info, bool) {
	if _, ok := d.daemon().Running(); !ok {
		return Info{}, false
	}
	if had, err := os.ReadFile(d.key); err != nil || string(had) != key {
		fmt.Fprintln(o.Log, "cluster: another version or other options run, replacing it")
		return Info{}, false
	}
	// One that another Up has just started, and was interrupted, may need a moment; a healthy one answers at once.
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := d.waitReady(ctx, o.GPUs, io.Discard, time.Now()); err != nil {
		fmt.Fprintln(o.Log, "cluster: the running one is not well, replacing it:", err)
		return Info{}, false
	}
	info, err := d.info(built)
	return info, err == nil
}

func (d directories) start(ctx context.Context, node nodeConfig, o Options, built binaries) (Info, error) {
	began := time.Now()
	if err := d.clear(ctx); err != nil {
		return Info{}, err
	}
	if err := checkAddresses(o.RegistryPort); err != nil {
		return Info{}, err
	}
	if err := d.configure(node, o.Log); err != nil {
		return Info{}, err
	}
	fmt.Fprintln(o.Log, "cluster: starting the node")
	if err := d.daemon().Start(exec.Command(filepath.Join(built.node, "node"), "supervise", d.plan)); err != nil {
		return Info{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	if err := d.waitReady(ctx, o.GPUs, o.Log, began); err != nil {
		return Info{}, fmt.Errorf("%w; see %s and %s", err, d.daemon().LogPath(), filepath.Join(d.logs, "*.log"))
	}
	return d.info(built)
}

func (d directories) info(built binaries) (Info, error) {
	var state plan.State
	if err := plan.Read(d.state, &state); err != nil {
		return Info{}, fmt.Errorf("reading the node's state: %w", err)
	}
	return Info{
		Kubeconfig: d.kubeconfig, HostAddr: hostAddress, NodeAddr: nodeAddress, NsenterPID: state.Init,
		Kubectl: filepath.Join(built.kubernetes, "kubectl"),
	}, nil
}

func checkHost() error {
	if os.Geteuid() != 0 {
		return errors.New("it needs root: run this as root")
	}
	for program, pkg := range map[string]string{"ip": "iproute2", "nft": "nftables"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%s is missing: install the package %s", program, pkg)
		}
	}
	return nil
}
