package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/greenlight-ci/greenlight/tests/sandbox/cache"
	"github.com/greenlight-ci/greenlight/tests/sandbox/process"
	"github.com/greenlight-ci/greenlight/tests/sandbox/registry"
)

// apiServer is where the cluster's API server is on the host.
const apiServer = "https://127.0.0.1:16443"

// status prints one line for each component. It fails if any that up started does not answer.
func status(ctx context.Context, out io.Writer) error {
	root, err := cache.Root()
	if err != nil {
		return err
	}
	e, envErr := loadEnvironment()
	if envErr == nil && e[envRunnerHost] == "" && e[envRegistryAddr] == "" {
		_, err := fmt.Fprintf(out, "%-10s  installed dagger %s, cluster of %s, registry %s\n", "caller's", e[envDagger], e[envKubeconfig], e[envRegistry])
		return err
	}
	wrong := false
	line := func(name, detail string, err error) {
		state := "up"
		if err != nil {
			state, detail, wrong = "down", err.Error(), true
		}
		_, _ = fmt.Fprintf(out, "%-10s  %-4s  %s\n", name, state, detail)
	}
	info, err := registry.Status(ctx)
	line("registry", fmt.Sprintf("%s, pid %d, %s", registry.Name, info.PID, info.Dir), err)
	pid, err := engineStatus(ctx, root)
	line("engine", fmt.Sprintf("%s, pid %d", e[envRunnerHost], pid), err)
	pid, err = clusterStatus(ctx, root)
	line("cluster", fmt.Sprintf("%s, pid %d, kubeconfig %s", apiServer, pid, e[envKubeconfig]), err)
	line("base", e[envBase], pushedStatus(ctx, e[envBase]))
	line("advisories", e[envTrivyDB], pushedStatus(ctx, e[envTrivyDB]))
	if envErr == nil && wrong {
		return errors.New("not all of the sandbox is up: run make up")
	}
	return nil
}

func engineStatus(ctx context.Context, root string) (int, error) {
	pid, err := daemonStatus(root, "engine")
	if err != nil {
		return 0, err
	}
	var d net.Dialer
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	conn, err := d.DialContext(ctx, "unix", filepath.Join(root, "run", "engine.sock"))
	if err != nil {
		return 0, fmt.Errorf("pid %d runs but does not answer: %w", pid, err)
	}
	return pid, conn.Close()
}

func clusterStatus(ctx context.Context, root string) (int, error) {
	pid, err := daemonStatus(root, "cluster")
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, apiServer+"/readyz", nil)
	if err != nil {
		return 0, err
	}
	// Nothing secret is sent and nothing that is said is trusted.
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return 0, fmt.Errorf("pid %d runs but its API server does not answer: %w", pid, err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode >= http.StatusInternalServerError {
		return 0, fmt.Errorf("pid %d runs but its API server is not ready: %s", pid, resp.Status)
	}
	return pid, nil
}

func daemonStatus(root, name string) (int, error) {
	pid, ok := process.Daemon{Name: name, Dir: filepath.Join(root, "run")}.Running()
	if !ok {
		return 0, errors.New("not running")
	}
	return pid, nil
}

// pushedStatus says whether the registry has a reference.
func pushedStatus(ctx context.Context, ref string) error {
	if ref == "" {
		return errors.New("not pushed")
	}
	rest, _ := strings.CutPrefix(ref, registry.Name+"/")
	parsed, err := name.ParseReference(registry.Addr+"/"+rest, name.Insecure)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if _, err := remote.Head(parsed, remote.WithContext(ctx)); err != nil {
		return fmt.Errorf("the registry does not have %s", ref)
	}
	return nil
}
