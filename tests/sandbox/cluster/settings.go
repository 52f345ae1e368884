package cluster

import (
	"fmt"
	"os"
	"strconv"
	"syscall"
)

// sandboxImage is the pause image's name in containerd. It is imported at each start and never pulled.
const sandboxImage = "sandbox.greenlight.dev/pause:1"

// overlayMagic is the file system type of an overlay mount.
const overlayMagic = 0x794c7630

// snapshotter says how containerd stacks image layers: with overlays, except on top of an overlay, where the kernel does
// not allow them.
func (d directories) snapshotter() (string, error) {
	if err := os.MkdirAll(d.containerd, 0o700); err != nil {
		return "", err
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(d.containerd, &fs); err != nil {
		return "", fmt.Errorf("looking at %s: %w", d.containerd, err)
	}
	if fs.Type == overlayMagic {
		return "native", nil
	}
	return "overlayfs", nil
}

// settings returns the node's configuration files, by path below nodeEtc.
func settings(o Options, snapshotter string) map[string]string {
	files := map[string]string{
		"containerd.toml":         containerdSettings(snapshotter),
		"cni/greenlight.conflist": cniSettings,
		"kubelet.yaml":            kubeletSettings,
		"kube-proxy.yaml":         kubeProxySettings,
		"Corefile":                dnsSettings,
	}
	// docker.io goes to the registry too, so that manifests which name public images work here unchanged.
	port := strconv.Itoa(o.RegistryPort)
	server := "http://" + hostAddress + ":" + port
	for _, name := range []string{"docker.io", "registry.localhost:" + port, "localhost:" + port, "127.0.0.1:" + port} {
		files["registries/"+name+"/hosts.toml"] = fmt.Sprintf("server = %q\n\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", server, server)
	}
	return files
}

func containerdSettings(snapshotter string) string {
	return fmt.Sprintf(`version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.erofs"]

[plugins."io.containerd.cri.v1.images"]
  snapshotter = %q
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = %q
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = "%s/registries"

[plugins."io.containerd.cri.v1.runtime"]
  disable_apparmor = true
  disable_hugetlb_controller = true
  tolerate_missing_hugetlb_controller = true
  # Containers' OOM scores stay at or above containerd's own: lowering one takes a capability that we may lack.
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = [%q]
    conf_dir = "%s/cni"
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
        BinaryName = "%s/runc"
        SystemdCgroup = false
`, snapshotter, sandboxImage, nodeEtc, nodeRuntime, nodeEtc, nodeRuntime)
}

// Pods are routed, not bridged: no bridge, no br_netfilter, and no translation of what leaves them.
const cniSettings = `{
  "cniVersion": "1.0.0",
  "name": "greenlight",
  "plugins": [
    {
      "type": "ptp",
      "ipMasq": false,
      "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "` + podRange + `"}]],
        "routes": [{"dst": "0.0.0.0/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}, "backend": "nftables"}
  ]
}
`

const kubeletSettings = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: ` + nodeEtc + `/ca.crt}
authorization: {mode: Webhook}
tlsCertFile: ` + nodeEtc + `/kubelet-server.crt
tlsPrivateKeyFile: ` + nodeEtc + `/kubelet-server.key
containerRuntimeEndpoint: unix://` + runtimeSocket + `
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: []
makeIPTablesUtilChains: false
localStorageCapacityIsolation: false
volumePluginDir: /var/lib/kubelet/volume-plugins
clusterDomain: ` + clusterDomain + `
clusterDNS: ["` + nodeAddress + `"]
resolvConf: ""
# The disk is the host's: nothing here may evict pods or delete images because of it.
evictionHard: {memory.available: "0%", nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%", imagefs.inodesFree: "0%"}
imageGCHighThresholdPercent: 100
nodeStatusUpdateFrequency: 1s
serializeImagePulls: false
registryPullQPS: 0
eventRecordQPS: 0
`

const kubeProxySettings = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clientConnection: {kubeconfig: ` + nodeEtc + `/kube-proxy.kubeconfig}
hostnameOverride: ` + nodeName + `
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
# These limits are the whole machine's.
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
# A switch is to show at once: rules are written without waiting for more changes.
nftables: {minSyncPeriod: 0s, syncPeriod: 30s}
`

// CoreDNS answers for Services and headless pods; no other name exists in the cluster.
const dnsSettings = `.:53 {
    bind ` + nodeAddress + `
    errors
    template ANY ANY {
        rcode NXDOMAIN
        fallthrough
    }
    kubernetes ` + clusterDomain + ` in-addr.arpa {
        kubeconfig ` + nodeEtc + `/coredns.kubeconfig
        ttl 5
    }
}
`
