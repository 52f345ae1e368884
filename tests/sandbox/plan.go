package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"time"

	"github.com/greenlight-ci/greenlight/tests/sandbox/registry"
)

// host is what up needs to know about the machine and its environment.
type host struct {
	system string // GOOS
	root   bool
	// dagger is the path of an installed dagger command, docker whether a Docker daemon answers.
	dagger string
	docker bool
	// kubeconfig and registry are the caller's own, from the environment.
	kubeconfig, registry string
}

func inspectHost(ctx context.Context) host {
	h := host{
		system: runtime.GOOS, root: os.Geteuid() == 0,
		kubeconfig: os.Getenv(envKubeconfig), registry: os.Getenv(envRegistry),
	}
	if path, err := exec.LookPath("dagger"); err == nil {
		h.dagger = path
	}
	if path, err := exec.LookPath("docker"); err == nil {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		h.docker = exec.CommandContext(ctx, path, "info").Run() == nil
	}
	return h
}

// plan says what of the sandbox is needed.
type plan struct {
	// ownEngine and ownCluster say that the sandbox's engine and cluster are used; else the installed dagger and the
	// caller's cluster and registry are. The sandbox's registry goes with either.
	ownEngine, ownCluster bool
}

func (p plan) ownRegistry() bool { return p.ownEngine || p.ownCluster }

// errCannotRun names the alternative to the sandbox.
var errCannotRun = errors.New("use Docker with the installed dagger, and set KUBECONFIG and REGISTRY to a cluster and a registry of your own")

// decide chooses between the sandbox's parts and the caller's.
func (h host) decide() (plan, error) {
	// An environment that `sandbox env` set up names the sandbox's own registry.
	callers := h.kubeconfig != "" && h.registry != "" && h.registry != registry.Name
	// An engine in Docker cannot reach a registry on the host's loopback: it serves with the caller's registry alone.
	p := plan{ownCluster: !callers, ownEngine: !callers || h.dagger == "" || !h.docker}
	if !p.ownRegistry() {
		return p, nil
	}
	switch {
	case h.system != "linux":
		return p, cannotRun("the sandbox runs on Linux only, this is " + h.system)
	case !h.root:
		return p, cannotRun("the sandbox needs root")
	}
	return p, nil
}

func cannotRun(why string) error { return &cannotRunError{why} }

type cannotRunError struct{ why string }

func (e *cannotRunError) Error() string { return e.why + ": " + errCannotRun.Error() }
func (e *cannotRunError) Unwrap() error { return errCannotRun }
