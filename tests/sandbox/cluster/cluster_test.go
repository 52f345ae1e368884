package cluster

import (
	"archive/tar"
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"github.com/greenlight-ci/greenlight/tests/sandbox/cluster/plan"
)

func TestOptionsDefaults(t *testing.T) {
	tests := []struct {
		name    string
		give    Options
		port    int
		gpus    int
		problem string
	}{
		{name: "nothing said", port: 15000, gpus: 2},
		{name: "no GPUs", give: Options{GPUs: -1}, port: 15000, gpus: 0},
		{name: "all said", give: Options{RegistryPort: 5001, GPUs: 8}, port: 5001, gpus: 8},
		{name: "no such port", give: Options{RegistryPort: 70000}, problem: "registry port 70000: must be 1 to 65535"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := test.give.withDefaults()
			if test.problem != "" {
				require.EqualError(t, err, test.problem)
				return
			}
			require.NoError(t, err)
			require.Equal(t, test.port, got.RegistryPort)
			require.Equal(t, test.gpus, got.GPUs)
			require.NotNil(t, got.Log)
		})
	}
}

func TestCheckOverlap(t *testing.T) {
	tests := []struct {
		name, prefix string
		problem      bool
	}{
		{"elsewhere", "192.168.1.5/24", false},
		{"beside it", "10.79.0.1/16", false},
		{"IPv6", "fe80::1/64", false},
		{"a pod's range", "10.77.3.1/24", true},
		{"all of 10", "10.1.2.3/8", true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			err := checkOverlap(map[string][]netip.Prefix{"eth7": {netip.MustParsePrefix(test.prefix)}})
			if !test.problem {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, "eth7")
			require.ErrorContains(t, err, test.prefix)
		})
	}
}

func TestIdentities(t *testing.T) {
	dir := t.TempDir()
	d := directories{etc: dir, kubeconfig: filepath.Join(dir, "kubeconfig")}
	require.NoError(t, d.writeIdentities())

	caPEM, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	require.NoError(t, err)
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM(caPEM))
	read := func(name string) *x509.Certificate {
		data, err := os.ReadFile(filepath.Join(dir, name+".crt"))
		require.NoError(t, err)
		block, _ := pem.Decode(data)
		cert, err := x509.ParseCertificate(block.Bytes)
		require.NoError(t, err)
		return cert
	}
	for _, name := range []string{"127.0.0.1", "localhost", "kube-api", "kubernetes", "kubernetes.default.svc", "10.76.0.2", "10.78.0.1"} {
		_, err := read("apiserver").Verify(x509.VerifyOptions{Roots: pool, DNSName: name})
		require.NoError(t, err, name)
	}
	clientAuth := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	kubelet := read("kubelet")
	_, err = kubelet.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: clientAuth})
	require.NoError(t, err)
	require.Equal(t, "system:node:greenlight", kubelet.Subject.CommonName)
	_, err = read("apiserver").Verify(x509.VerifyOptions{Roots: pool, KeyUsages: clientAuth})
	require.Error(t, err, "a server's certificate must not log anybody in")

	config, err := clientcmd.BuildConfigFromFlags("", d.kubeconfig)
	require.NoError(t, err)
	require.Equal(t, "https://127.0.0.1:16443", config.Host)
	require.NotEmpty(t, config.CertData)
	info, err := os.Stat(d.kubeconfig)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
}

func TestSettingsParse(t *testing.T) {
	files := settings(Options{RegistryPort: 15000}, "overlayfs")
	for _, name := range []string{"kubelet.yaml", "kube-proxy.yaml"} {
		var v map[string]any
		require.NoError(t, yaml.UnmarshalStrict([]byte(files[name]), &v), name)
	}
	require.True(t, json.Valid([]byte(files["cni/greenlight.conflist"])))
	for _, registry := range []string{"docker.io", "registry.localhost:15000", "localhost:15000"} {
		require.Contains(t, files["registries/"+registry+"/hosts.toml"], `server = "http://10.76.0.1:15000"`)
	}
}

func TestPlan(t *testing.T) {
	d := directories{plan: filepath.Join(t.TempDir(), "plan.json")}
	made := d.makePlan(Options{RegistryPort: 5001, GPUs: 2}, binaries{}, "overlayfs")
	names := map[string]bool{}
	for _, p := range made.Programs {
		names[p.Name] = true
	}
	require.True(t, names["fake-gpu-plugin"])
	for _, p := range made.Programs {
		for _, condition := range p.After {
			if name, ok := strings.CutPrefix(condition, "done:"); ok {
				require.True(t, names[name], "%s waits for %s, which is not there", p.Name, name)
			}
		}
	}
	require.Contains(t, made.Forwards, plan.Forward{Listen: "10.76.0.1:5001", Target: "127.0.0.1:5001", From: "10.76.0.0/15"})
	require.NoError(t, plan.Write(d.plan, made))
	var got plan.Plan
	require.NoError(t, plan.Read(d.plan, &got))
	require.Equal(t, made, got)
	for _, p := range programs(Options{}, "overlayfs") {
		require.NotEqual(t, "fake-gpu-plugin", p.Name)
	}
}

func TestNodeKey(t *testing.T) {
	make := func(o Options) nodeConfig {
		return nodeConfig{plan: directories{}.makePlan(o, binaries{}, "overlayfs"), files: settings(o, "overlayfs")}
	}
	o := Options{RegistryPort: 15000, GPUs: 2}
	require.Equal(t, make(o).key(), make(o).key())
	require.NotEqual(t, make(o).key(), make(Options{RegistryPort: 15001, GPUs: 2}).key())
	require.NotEqual(t, make(o).key(), make(Options{RegistryPort: 15000, GPUs: 1}).key())
	changed := make(o)
	changed.files["Corefile"] += "#"
	require.NotEqual(t, make(o).key(), changed.key())
}

func TestPackPause(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "pause")
	require.NoError(t, os.WriteFile(program, []byte("binary"), 0o755))
	for _, name := range []string{"a.tar", "b.tar"} {
		require.NoError(t, packPause(filepath.Join(dir, name), program))
	}
	a, err := os.ReadFile(filepath.Join(dir, "a.tar"))
	require.NoError(t, err)
	b, err := os.ReadFile(filepath.Join(dir, "b.tar"))
	require.NoError(t, err)
	require.Equal(t, a, b)

	contents := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(a)); ; {
		header, err := r.Next()
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		contents[header.Name], err = io.ReadAll(r)
		require.NoError(t, err)
	}
	for name, data := range contents {
		if sum, ok := strings.CutPrefix(name, "blobs/sha256/"); ok {
			require.Equal(t, sum, digest(data))
		}
	}
	require.Contains(t, string(contents["index.json"]), sandboxImage)
}

func TestForgetContainers(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, forgetContainers(dir), "nothing there yet")
	path := filepath.Join(dir, "io.containerd.metadata.v1.bolt", "meta.db")
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	db, err := bolt.Open(path, 0o644, nil)
	require.NoError(t, err)
	require.NoError(t, db.Update(func(tx *bolt.Tx) error {
		v1, err := tx.CreateBucket([]byte("v1"))
		require.NoError(t, err)
		namespace, err := v1.CreateBucket([]byte("k8s.io"))
		require.NoError(t, err)
		for _, kind := range []string{"containers", "images", "sandboxes"} {
			bucket, err := namespace.CreateBucket([]byte(kind))
			require.NoError(t, err)
			_, err = bucket.CreateBucket([]byte("one"))
			require.NoError(t, err)
		}
		return nil
	}))
	require.NoError(t, db.Close())
	require.NoError(t, forgetContainers(dir))

	db, err = bolt.Open(path, 0o644, nil)
	require.NoError(t, err)
	defer func() { require.NoError(t, db.Close()) }()
	require.NoError(t, db.View(func(tx *bolt.Tx) error {
		namespace := tx.Bucket([]byte("v1")).Bucket([]byte("k8s.io"))
		require.Nil(t, namespace.Bucket([]byte("containers")))
		require.Nil(t, namespace.Bucket([]byte("sandboxes")))
		require.NotNil(t, namespace.Bucket([]byte("images")).Bucket([]byte("one")))
		return nil
	}))

	require.NoError(t, os.WriteFile(path, []byte("not a database"), 0o644))
	require.Error(t, forgetContainers(dir))
}

func TestVersion(t *testing.T) {
	const goMod = "module m\n\nrequire k8s.io/kubernetes v1.36.3\n\nrequire (\n\texample.com/a v0.1.0 // indirect\n)\n\nreplace example.com/b => example.com/c v3.0.0\n"
	for module, want := range map[string]string{"k8s.io/kubernetes": "v1.36.3", "example.com/a": "v0.1.0", "example.com/b": ""} {
		require.Equal(t, want, version(goMod, module), module)
	}
}

func TestEmbeddedSources(t *testing.T) {
	for _, dir := range []string{"source/kubernetes", "source/runtime"} {
		files, err := embedded(sources, dir)
		require.NoError(t, err)
		require.Contains(t, files, "go.mod")
		require.Contains(t, files, "go.sum")
	}
	files, err := embedded(programSources, ".")
	require.NoError(t, err)
	require.Contains(t, files, "node/main.go")
	require.Contains(t, files, "plan/plan.go")
}

func TestKillExactSparesOthers(t *testing.T) {
	sleep := exec.Command("sleep", "60")
	require.NoError(t, sleep.Start())
	ended := make(chan error, 1)
	go func() { ended <- sleep.Wait() }()
	started := startTime(sleep.Process.Pid)
	require.NotZero(t, started)
	killExact(sleep.Process.Pid, started+1)
	killExact(1, startTime(1))
	select {
	case <-ended:
		t.Fatal("a process with another start time was killed")
	case <-time.After(100 * time.Millisecond):
	}
	killExact(sleep.Process.Pid, started)
	require.Error(t, <-ended)
	require.Zero(t, startTime(-1))
}
