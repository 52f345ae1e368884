// Package registry runs the sandbox's OCI registry: a daemon on loopback that keeps its blobs and manifests on disk.
//
// It is go-containerregistry's registry (pkg/registry) with its gaps filled, each where the original is known to fall
// short: manifests are kept on disk and read back at start (the original holds them in memory), blobs are served with
// complete range support (the original refuses "bytes=N-", which containerd resumes with) and are not hashed again on
// every request, uploads in pieces go to disk (the original collects them in memory), and deleting a digest deletes its tags. Referrers (OCI 1.1) are on; the fallback tag scheme needs
// nothing. distribution/distribution has all of this but the referrers API, at the price of some 200 packages in the
// graph of every user of the library (Redis, OpenTelemetry exporters, gRPC, Prometheus), which a test fixture is not worth.
//
// There is no authentication: it listens on loopback only. The cluster's node reaches it through a forwarder of its own.
package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/greenlight-ci/greenlight/tests/sandbox/cache"
	"github.com/greenlight-ci/greenlight/tests/sandbox/process"
)

const (
	// Port is the TCP port of the registry on every address that it listens on.
	Port = 15000
	// Addr is where programs on the host reach the registry.
	Addr = "127.0.0.1:15000"
	// Name is the registry's name in image references. Clients treat *.localhost as plain HTTP by themselves.
	Name = "registry.localhost:15000"
	// ServeCommand is the argument with which Up starts its own executable as the daemon.
	ServeCommand = "registry-serve"

	serverHeader = "greenlight-sandbox-registry"
)

// ErrAddressTaken says that something else listens where the registry should.
var ErrAddressTaken = errors.New("the address is taken by another program")

// Options of Up.
type Options struct {
	// Addr is the host:port to listen on. Default: Addr.
	Addr string
	// Dir holds blobs and manifests. Default: registry/ under the cache root.
	Dir string
	// Command is what runs the daemon; --dir and --addr are appended to it. Default: this executable with ServeCommand.
	Command []string
	// Log gets a line for each thing that is done. Default: none.
	Log io.Writer
}

// Info describes a running registry.
type Info struct {
	// Addr is where to reach it from the host.
	Addr string
	// PID is the daemon's process id.
	PID int
	// Dir holds its blobs and manifests.
	Dir string
}

// Up starts the registry if it does not run and waits until it answers.
func Up(ctx context.Context, o Options) (Info, error) {
	if o.Addr == "" {
		o.Addr = Addr
	}
	if o.Log == nil {
		o.Log = io.Discard
	}
	if err := checkAddr(o.Addr); err != nil {
		return Info{}, err
	}
	root, err := cache.Root()
	if err != nil {
		return Info{}, err
	}
	if o.Dir == "" {
		o.Dir = filepath.Join(root, "registry")
	}
	run := filepath.Join(root, "run")
	if err := os.MkdirAll(run, 0o755); err != nil {
		return Info{}, fmt.Errorf("starting the registry: %w", err)
	}
	unlock, err := cache.Lock(ctx, filepath.Join(run, "registry.lock"))
	if err != nil {
		return Info{}, fmt.Errorf("starting the registry: %w", err)
	}
	defer unlock()

	d := daemon(run)
	pid, running := d.Running()
	if !running {
		if pid, err = start(d, o); err != nil {
			return Info{}, err
		}
	}
	if err := waitHealthy(ctx, d, o.Addr); err != nil {
		return Info{}, err
	}
	if !running {
		_, _ = fmt.Fprintf(o.Log, "registry: started on %s, pid %d, data in %s\n", o.Addr, pid, o.Dir)
	}
	return Info{Addr: o.Addr, PID: pid, Dir: o.Dir}, nil
}

// Down stops the registry. What it stored stays for the next start. It is no error if it does not run.
func Down(ctx context.Context, log io.Writer) error {
	root, err := cache.Root()
	if err != nil {
		return err
	}
	run := filepath.Join(root, "run")
	d := daemon(run)
	pid, running := d.Running()
	if err := d.Stop(ctx); err != nil {
		return err
	}
	if running && log != nil {
		_, _ = fmt.Fprintf(log, "registry: stopped pid %d\n", pid)
	}
	return nil
}

// Status returns the running registry, or an error that says why there is none.
func Status(ctx context.Context) (Info, error) {
	root, err := cache.Root()
	if err != nil {
		return Info{}, err
	}
	d := daemon(filepath.Join(root, "run"))
	pid, ok := d.Running()
	if !ok {
		return Info{}, errors.New("not running")
	}
	if err := Healthy(ctx, Addr); err != nil {
		return Info{}, err
	}
	return Info{Addr: Addr, PID: pid, Dir: filepath.Join(root, "registry")}, nil
}

// Healthy asks the registry at addr (host:port) whether it answers, and checks that it is this package's.
func Healthy(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/v2/", nil)
	if err != nil {
		return err
	}
	// A transport of its own: no proxy stands between a program and its loopback.
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("asking the registry: %w", err)
	}
	_ = resp.Body.Close()
	if resp.Header.Get("Server") != serverHeader {
		return fmt.Errorf("asking the registry at %s: %w", addr, ErrAddressTaken)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("asking the registry at %s: it answers %s", addr, resp.Status)
	}
	return nil
}

func start(d process.Daemon, o Options) (int, error) {
	if l, err := net.Listen("tcp", o.Addr); err != nil {
		return 0, fmt.Errorf("starting the registry on %s: %w: end it first (%v)", o.Addr, ErrAddressTaken, err)
	} else {
		_ = l.Close()
	}
	command := o.Command
	if len(command) == 0 {
		self, err := os.Executable()
		if err != nil {
			return 0, fmt.Errorf("starting the registry: finding this executable: %w", err)
		}
		command = []string{self, ServeCommand}
	}
	command = append(slices.Clone(command), "--dir", o.Dir, "--addr", o.Addr)
	if err := d.Start(exec.Command(command[0], command[1:]...)); err != nil {
		return 0, err
	}
	pid, _ := d.Running()
	return pid, nil
}

func waitHealthy(ctx context.Context, d process.Daemon, addr string) error {
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := Healthy(ctx, addr)
		if err == nil {
			return nil
		}
		if _, ok := d.Running(); !ok {
			return fmt.Errorf("starting the registry: it ended: %s (log: %s)", d.LogTail(2), d.LogPath())
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			return fmt.Errorf("waiting for the registry: %w (log: %s)", err, d.LogPath())
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func daemon(run string) process.Daemon {
	return process.Daemon{Name: "registry", Dir: run, Grace: 5 * time.Second}
}

// checkAddr refuses addresses that would open the unauthenticated registry to others.
func checkAddr(addr string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("registry address %q: %w", addr, err)
	}
	ip := net.ParseIP(host)
	if ip == nil || !ip.IsLoopback() {
		return fmt.Errorf("registry address %q: want a loopback IP address, since the registry has no authentication", addr)
	}
	return nil
}
