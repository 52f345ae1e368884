package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/greenlight-ci/greenlight/tests/sandbox/cache"
	"github.com/greenlight-ci/greenlight/tests/sandbox/cluster"
	"github.com/greenlight-ci/greenlight/tests/sandbox/engine"
	"github.com/greenlight-ci/greenlight/tests/sandbox/images"
	"github.com/greenlight-ci/greenlight/tests/sandbox/registry"
)

// Variables that `sandbox env` sets.
const (
	envKubeconfig   = "KUBECONFIG"
	envRegistry     = "REGISTRY"
	envRegistryAddr = "GREENLIGHT_REGISTRY_ADDR" // where programs on the host reach the registry
	envBase         = "GREENLIGHT_BASE"          // base of the service image
	envTrivyDB      = "GREENLIGHT_TRIVY_DB"
	envDagger       = "GREENLIGHT_DAGGER"    // path of the dagger command
	envNodePID      = "GREENLIGHT_NODE_PID"  // enter the node: nsenter --target $GREENLIGHT_NODE_PID --all
	envHostAddr     = "GREENLIGHT_HOST_ADDR" // the host as pods see it
	envRunnerHost   = "_EXPERIMENTAL_DAGGER_RUNNER_HOST"
	envCLIBin       = "_EXPERIMENTAL_DAGGER_CLI_BIN"
	envPath         = "PATH" // directories that are put before the caller's
)

// environment maps variables to values.
type environment map[string]string

// sandboxEnvironment is what the sandbox's registry offers.
func sandboxEnvironment(pushed images.Info, database string) environment {
	return environment{
		envRegistry: registry.Name, envRegistryAddr: registry.Addr, envBase: pushed.BaseRef, envTrivyDB: database,
		"DO_NOT_TRACK": "1", "DAGGER_NO_NAG": "1",
	}
}

func (e environment) addEngine(p plan, h host, info engine.Info) {
	if !p.ownEngine {
		e[envDagger] = h.dagger
		return
	}
	e[envDagger], e[envCLIBin], e[envRunnerHost] = info.CLI, info.CLI, info.RunnerHost
	e.addPath(filepath.Dir(info.CLI))
}

func (e environment) addCluster(p plan, h host, info cluster.Info) {
	if !p.ownCluster {
		// The images go where the caller's cluster finds them; the base comes from the sandbox all the same.
		e[envKubeconfig], e[envRegistry] = h.kubeconfig, h.registry
		return
	}
	e[envKubeconfig], e[envHostAddr], e[envNodePID] = info.Kubeconfig, info.HostAddr, fmt.Sprint(info.NsenterPID)
	e.addPath(filepath.Dir(info.Kubectl))
}

func (e environment) addPath(dir string) {
	if e[envPath] != "" {
		dir = e[envPath] + ":" + dir
	}
	e[envPath] = dir
}

// callersEnvironment is for a caller who has everything.
func callersEnvironment(h host) environment {
	return environment{
		envKubeconfig: h.kubeconfig, envRegistry: h.registry, envDagger: h.dagger, "DO_NOT_TRACK": "1", "DAGGER_NO_NAG": "1",
	}
}

func environmentPath() (string, error) {
	root, err := cache.Root()
	return filepath.Join(root, "run", "environment.json"), err
}

func saveEnvironment(e environment) error {
	path, err := environmentPath()
	if err != nil {
		return err
	}
	data, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("keeping the sandbox's environment: %w", err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		return fmt.Errorf("keeping the sandbox's environment: %w", err)
	}
	return nil
}

func loadEnvironment() (environment, error) {
	path, err := environmentPath()
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, errors.New("the sandbox is not up: run make up")
	}
	if err != nil {
		return nil, fmt.Errorf("reading the sandbox's environment: %w", err)
	}
	var e environment
	if err := json.Unmarshal(data, &e); err != nil {
		return nil, fmt.Errorf("reading the sandbox's environment: %s: %w (run make up again)", path, err)
	}
	return e, nil
}

// printEnvironment prints what up recorded as shell commands.
func printEnvironment(out io.Writer) error {
	e, err := loadEnvironment()
	if err != nil {
		return err
	}
	_, err = io.WriteString(out, e.shell())
	return err
}

// shell renders the environment as export commands, sorted by name.
func (e environment) shell() string {
	names := make([]string, 0, len(e))
	for name := range e {
		names = append(names, name)
	}
	slices.Sort(names)
	var b strings.Builder
	for _, name := range names {
		if name == envPath {
			fmt.Fprintf(&b, "export PATH=%s:\"$PATH\"\n", quote(e[name]))
			continue
		}
		fmt.Fprintf(&b, "export %s=%s\n", name, quote(e[name]))
	}
	return b.String()
}

// quote makes s one word of a POSIX shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
