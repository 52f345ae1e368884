package ci

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// dagger runs the command against the sandbox's engine and returns its exit code and what it printed.
func dagger(t *testing.T, dir string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	command := os.Getenv("GREENLIGHT_DAGGER")
	if command == "" {
		t.Skip(`no sandbox: run make up, then eval "$(go run ./tests/sandbox env)"`)
	}
	cmd := exec.Command(command, append([]string{"--progress=plain"}, args...)...)
	cmd.Dir = dir
	var out, messages bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &messages
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		require.True(t, errors.As(err, &exit), "%v", err)
		code = exit.ExitCode()
	}
	return code, out.String(), messages.String()
}

func TestFunctions(t *testing.T) {
	code, out, messages := dagger(t, "../..", "functions")
	require.Zero(t, code, messages)
	for _, name := range []string{"build", "preflight", "prune", "release", "rollback", "scan", "sign", "status", "verify", "version"} {
		require.Regexp(t, `(?m)^`+name+` +\S`, out, "every stage is there, with a description")
	}
}

// What a caller got wrong is one line and exit code 2, before anything is built or changed.
func TestWrongUseOfTheModule(t *testing.T) {
	if os.Getenv("KUBECONFIG") == "" {
		t.Skip("no sandbox")
	}
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		return path
	}
	const good = "service: digits\nimage: {repository: registry.localhost:15000/greenlight/digits}\ndevice: cpu\n"
	write("greenlight.yaml", good)
	write("unknown.yaml", good+"replcas: 2\n")
	write("unnamed.yaml", strings.Replace(good, "registry.localhost:15000/", "localhost:15000/", 1))
	local := write("local", "clusters: [{name: a, cluster: {server: 'https://127.0.0.1:6443'}}]\n")
	remote := write("remote", "clusters: [{name: a, cluster: {server: 'https://k8s.invalid'}}]\n")
	empty := write("empty", "")
	t.Setenv("GREENLIGHT_TEST_KEY", "key")
	tests := map[string]struct {
		args   []string
		reason string
	}{
		"no config":           {[]string{"--config", "other.yaml", "--kubeconfig", "file:" + local}, "other.yaml does not exist"},
		"config elsewhere":    {[]string{"--config", "../greenlight.yaml", "--kubeconfig", "file:" + local}, "must be a path below --source"},
		"unknown key":         {[]string{"--config", "unknown.yaml", "--kubeconfig", "file:" + local}, `unknown.yaml:4: unknown key "replcas"`},
		"local kubeconfig":    {[]string{"--kubeconfig", "file:" + local}, "pass --kube-api tcp://localhost:6443"},
		"no kubeconfig":       {[]string{"--kubeconfig", "file:" + filepath.Join(dir, "none")}, "the kubeconfig cannot be read"},
		"empty kubeconfig":    {[]string{"--kubeconfig", "file:" + empty}, "the kubeconfig is empty"},
		"variable not set":    {[]string{"--kubeconfig", "env:GREENLIGHT_TEST_UNSET"}, "secret env var not found"},
		"half of credentials": {[]string{"--kubeconfig", "file:" + remote, "--registry-username", "robot"}, "go together"},
		"registry on this machine": {
			[]string{"--kubeconfig", "file:" + remote, "--config", "unnamed.yaml", "--registry", "tcp://localhost:15000"},
			"inside a container is the container",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"call", "release", "--source", dir, "--version", "v1.0.0-0123abc", "--signing-key", "env:GREENLIGHT_TEST_KEY"}, test.args...)
			code, _, messages := dagger(t, "../..", args...)
			require.Equal(t, 2, code, messages)
			lines := strings.Split(strings.TrimSpace(messages), "\n")
			last := lines[len(lines)-1]
			require.Contains(t, last, test.reason)
			require.NotContains(t, last, "/service/", "files have the names that the caller knows")
		})
	}
}

// Another module can depend on this one and still compiles the stage binaries from this repository.
func TestConsumer(t *testing.T) {
	code, out, messages := dagger(t, "../consumer", "call", "greenlight")
	require.Zero(t, code, messages)
	require.Regexp(t, `^v\d+\.\d+\.\d+`, out)

	source := t.TempDir()
	t.Setenv("GREENLIGHT_TEST_SECRET", "secret")
	code, out, messages = dagger(t, "../consumer", "call", "ship", "--source", source, "--version", "v1.0.0-0123abc",
		"--kubeconfig", "env:GREENLIGHT_TEST_SECRET", "--signing-key", "env:GREENLIGHT_TEST_SECRET")
	require.Zero(t, code, messages)
	require.Contains(t, out, "v1.0.0-0123abc: failed")
	require.Contains(t, out, "greenlight.yaml does not exist")
}
