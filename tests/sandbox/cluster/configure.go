package cluster

import (
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/greenlight-ci/greenlight/tests/sandbox/cache"
	"github.com/greenlight-ci/greenlight/tests/sandbox/cluster/plan"
)

// Where things are in the node.
const (
	nodeEtc        = "/etc/greenlight"
	nodeKubernetes = "/opt/kubernetes"
	nodeRuntime    = "/opt/runtime"
	nodePrograms   = "/opt/node"
	runtimeSocket  = "/run/containerd/containerd.sock"
)

// A nodeConfig is all that makes a node what it is, except for its certificates.
type nodeConfig struct {
	plan  plan.Plan
	files map[string]string
}

// key tells configurations apart.
func (n nodeConfig) key() string {
	parts := []string{fmt.Sprintf("%+v", n.plan)}
	for _, name := range slices.Sorted(maps.Keys(n.files)) {
		parts = append(parts, name, n.files[name])
	}
	return cache.Key(parts...)
}

// configure writes certificates, settings and the plan of a new cluster.
func (d directories) configure(node nodeConfig, log io.Writer) error {
	for _, dir := range []string{d.etc, d.root, d.etcd, d.kubelet} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(d.logs); err != nil {
		return err
	}
	if err := os.MkdirAll(d.logs, 0o755); err != nil {
		return err
	}
	if err := forgetContainers(d.containerd); err != nil {
		fmt.Fprintln(log, "cluster: dropping the pulled images, they cannot be reused:", err)
		if err := os.RemoveAll(d.containerd); err != nil {
			return err
		}
		if err := os.MkdirAll(d.containerd, 0o700); err != nil {
			return err
		}
	}
	if err := d.writeIdentities(); err != nil {
		return fmt.Errorf("making the cluster's certificates: %w", err)
	}
	for name, content := range node.files {
		path := filepath.Join(d.etc, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	if err := plan.Write(d.plan, node.plan); err != nil {
		return err
	}
	return os.WriteFile(d.key, []byte(node.key()), 0o644)
}

// writeIdentities makes all certificates and kubeconfigs. In the node, everything but the administrator's kubeconfig is
// in nodeEtc.
func (d directories) writeIdentities() error {
	ca, err := newAuthority(d.etc)
	if err != nil {
		return err
	}
	for _, id := range []identity{
		{file: "apiserver", user: "kube-apiserver", names: []string{
			"127.0.0.1", "localhost", "kube-api", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
			"kubernetes.default.svc." + clusterDomain, nodeName, nodeAddress, apiService,
		}},
		{file: "kubelet-server", user: nodeName, names: []string{nodeName, nodeAddress}},
		{file: "apiserver-kubelet-client", user: "kube-apiserver-kubelet-client", groups: []string{"system:masters"}},
		{file: "service-accounts", user: "service-accounts"}, // of this pair only the keys are used
	} {
		if _, _, err := ca.issue(id); err != nil {
			return fmt.Errorf("issuing a certificate for %s: %w", id.user, err)
		}
	}
	for _, id := range []identity{
		{file: "kubelet", user: "system:node:" + nodeName, groups: []string{"system:nodes"}},
		{file: "kube-controller-manager", user: "system:kube-controller-manager"},
		{file: "kube-scheduler", user: "system:kube-scheduler"},
		{file: "kube-proxy", user: "system:kube-proxy"},
		{file: "coredns", user: dnsUser},
	} {
		content, err := ca.kubeconfig(id, "https://"+nodeAPI())
		if err != nil {
			return err
		}
		if err := os.WriteFile(ca.path(id.file+".kubeconfig"), content, 0o600); err != nil {
			return err
		}
	}
	admin := identity{file: "admin", user: "greenlight-sandbox-admin", groups: []string{"system:masters"}}
	content, err := ca.kubeconfig(admin, "https://"+hostAPI())
	if err != nil {
		return err
	}
	partial := d.kubeconfig + ".partial"
	if err := os.WriteFile(partial, content, 0o600); err != nil {
		return err
	}
	return os.Rename(partial, d.kubeconfig)
}

func (d directories) makePlan(o Options, built binaries, snapshotter string) plan.Plan {
	registry := strconv.Itoa(o.RegistryPort)
	return plan.Plan{
		Hostname: nodeName, Root: d.root, State: d.state, CgroupName: cgroupName,
		Network: plan.Network{
			HostLink: hostLink, HostAddress: hostAddress, NodeAddress: nodeAddress, PrefixBits: linkBits,
			PodRange: podRange, ServiceRange: serviceRange, NodeInterface: "eth0",
		},
		Forwards: []plan.Forward{
			{Listen: hostAPI(), Target: nodeAPI()},
			// The registry listens on loopback only; this is its door for the node and its pods, and for nobody else.
			{Listen: hostAddress + ":" + registry, Target: "127.0.0.1:" + registry, From: "10.76.0.0/15"},
		},
		Mounts: []plan.Mount{
			{Source: built.kubernetes, Target: nodeKubernetes, ReadOnly: true},
			{Source: built.runtime, Target: nodeRuntime, ReadOnly: true},
			{Source: built.node, Target: nodePrograms, ReadOnly: true},
			{Source: d.etc, Target: nodeEtc, ReadOnly: true},
			{Source: d.etcd, Target: "/var/lib/etcd"},
			{Source: d.kubelet, Target: "/var/lib/kubelet"},
			{Source: d.containerd, Target: "/var/lib/containerd"},
			{Source: d.logs, Target: "/var/log"},
		},
		Files: map[string]string{
			"/etc/passwd":        "root:x:0:0:root:/root:/bin/sh\n",
			"/etc/group":         "root:x:0:\n",
			"/etc/hostname":      nodeName + "\n",
			"/etc/hosts":         "127.0.0.1 localhost\n" + nodeAddress + " " + nodeName + "\n" + hostAddress + " registry.localhost\n",
			"/etc/nsswitch.conf": "hosts: files\n",
			"/etc/resolv.conf":   "",
			"/etc/machine-id":    "677265656e6c696768742d6e6f646521\n",
		},
		// What the kubelet would set for the whole machine. It finds its values here and leaves the machine alone.
		Sysctls: map[string]string{
			"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
			"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
		},
		Programs: programs(o, snapshotter),
	}
}

// programs are what runs in the node, with what each waits for. Controllers that start before the API server is ready
// would end, and cost a second each.
func programs(o Options, snapshotter string) []plan.Program {
	apiReady := "https://" + nodeAPI() + "/readyz"
	etc := func(name string) string { return nodeEtc + "/" + name }
	path := []string{"PATH=" + nodeRuntime + ":" + nodeKubernetes + ":/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}
	list := []plan.Program{
		{Name: "etcd", Args: []string{
			nodeKubernetes + "/etcd", "--name=" + nodeName, "--data-dir=/var/lib/etcd", "--unsafe-no-fsync",
			"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
			"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
			"--initial-cluster=" + nodeName + "=http://127.0.0.1:2380",
			// The one member elects itself as soon as this time is over.
			"--heartbeat-interval=50", "--election-timeout=250", "--log-level=warn",
		}},
		{Name: "containerd", Args: []string{nodeRuntime + "/containerd", "--config=" + etc("containerd.toml")}},
		{Name: "import-pause", Once: true, After: []string{"unix:" + runtimeSocket}, Args: []string{
			nodeRuntime + "/ctr", "--address=" + runtimeSocket, "--namespace=k8s.io", "images", "import", "--local",
			"--snapshotter=" + snapshotter, nodePrograms + "/pause.tar",
		}},
		{Name: "kube-apiserver", After: []string{"tcp:127.0.0.1:2379"}, Args: []string{
			nodeKubernetes + "/kube-apiserver", "--etcd-servers=http://127.0.0.1:2379",
			"--advertise-address=" + nodeAddress, "--bind-address=0.0.0.0", "--secure-port=" + strconv.Itoa(apiPort),
			"--tls-cert-file=" + etc("apiserver.crt"), "--tls-private-key-file=" + etc("apiserver.key"),
			"--client-ca-file=" + etc("ca.crt"), "--authorization-mode=Node,RBAC",
			"--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
			"--kubelet-client-certificate=" + etc("apiserver-kubelet-client.crt"),
			"--kubelet-client-key=" + etc("apiserver-kubelet-client.key"),
			"--kubelet-certificate-authority=" + etc("ca.crt"), "--kubelet-preferred-address-types=InternalIP",
			"--service-cluster-ip-range=" + serviceRange, "--service-account-issuer=https://kubernetes.default.svc",
			"--service-account-signing-key-file=" + etc("service-accounts.key"),
			"--service-account-key-file=" + etc("service-accounts.crt"), "--profiling=false",
		}},
		{Name: "kube-controller-manager", After: []string{apiReady}, Args: []string{
			nodeKubernetes + "/kube-controller-manager", "--kubeconfig=" + etc("kube-controller-manager.kubeconfig"),
			"--leader-elect=false", "--use-service-account-credentials=true", "--bind-address=127.0.0.1", "--root-ca-file=" + etc("ca.crt"),
			"--service-account-private-key-file=" + etc("service-accounts.key"),
			"--cluster-signing-cert-file=" + etc("ca.crt"), "--cluster-signing-key-file=" + etc("ca.key"),
			// With the default of 20 a new cluster waits seconds for its first ServiceAccount.
			"--kube-api-qps=500", "--kube-api-burst=1000", "--profiling=false",
		}},
		{Name: "kube-scheduler", After: []string{apiReady}, Args: []string{
			nodeKubernetes + "/kube-scheduler", "--kubeconfig=" + etc("kube-scheduler.kubeconfig"),
			"--leader-elect=false", "--bind-address=127.0.0.1", "--profiling=false",
		}},
		{Name: "kube-proxy", After: []string{apiReady}, Args: []string{
			nodeKubernetes + "/kube-proxy", "--config=" + etc("kube-proxy.yaml"),
		}},
		{Name: "kubelet", After: []string{apiReady, "done:import-pause"}, Args: []string{
			nodeKubernetes + "/kubelet", "--config=" + etc("kubelet.yaml"), "--kubeconfig=" + etc("kubelet.kubeconfig"),
			"--hostname-override=" + nodeName, "--node-ip=" + nodeAddress,
			"--node-labels=greenlight.dev/fake-gpus=" + strconv.Itoa(o.GPUs),
		}},
		{Name: "coredns", After: []string{apiReady}, Args: []string{
			nodeKubernetes + "/coredns", "-conf", etc("Corefile"),
		}},
	}
	if o.GPUs > 0 {
		list = append(list, plan.Program{Name: "fake-gpu-plugin", Args: []string{
			nodeKubernetes + "/fake-gpu-plugin", "-devices", strconv.Itoa(o.GPUs),
		}})
	}
	for i := range list {
		list[i].Env, list[i].CA = path, etc("ca.crt")
	}
	return list
}
