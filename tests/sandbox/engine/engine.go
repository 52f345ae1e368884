// Package engine builds a Dagger engine and its command line from their Go modules, and runs the engine on a machine that
// has neither Docker nor an engine image: in namespaces of its own, so that everything it does to the host ends with it.
//
// The engine needs root, Linux, and the programs of DebianPackages.
package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/greenlight-ci/greenlight/tests/sandbox/cache"
	"github.com/greenlight-ci/greenlight/tests/sandbox/process"
)

// Version is the Dagger release that is built: engine, command line and Go SDK.
const Version = "v0.20.8"

const (
	// startTimeout bounds the time from the start of the engine's process to its first answer: about 4 s on an idle machine.
	startTimeout = 2 * time.Minute
	// stopGrace lets the engine write its cache to disk.
	stopGrace = 30 * time.Second
	// maxSocketPath is the longest path that fits in a Unix socket address.
	maxSocketPath = 107
)

// Options say how the engine reaches the sandbox's registry. The zero value is usable.
type Options struct {
	// RegistryAddr is the host:port where the registry answers plain HTTP. Docker Hub's images are looked up there, and
	// nowhere else. Default 127.0.0.1:15000.
	RegistryAddr string
	// RegistryNames are the further names that image references use for the same registry; the engine resolves each to
	// RegistryAddr's host. A name without a port gets RegistryAddr's. Default registry.localhost.
	RegistryNames []string
	// Log gets progress lines and, for a build that takes long, the compiler's output. Default: nowhere.
	Log io.Writer
}

// Info says how to use the engine that runs.
type Info struct {
	// CLI is the path of the dagger command of the engine's own version.
	CLI string
	// RunnerHost is the value for _EXPERIMENTAL_DAGGER_RUNNER_HOST.
	RunnerHost string
}

// DebianPackages lists the Debian packages that Build and Up need, besides Go itself.
func DebianPackages() []string {
	return []string{
		"ca-certificates", "dnsmasq-base", "dpkg", "gcc", "git", "iproute2", "iptables", "libc6-dev", "libseccomp-dev",
		"mount", "nftables", "pkg-config", "util-linux",
	}
}

// Build makes what Up needs, unless the cache has it: the programs (about 600 CPU-seconds the first time) and the Go SDK's
// image (about 130). It starts nothing and needs root only for the image.
func Build(ctx context.Context, log io.Writer) error {
	_, err := build(ctx, logTo(log))
	return err
}

// Up makes sure that an engine runs with these options and returns how to reach it. An engine that runs with other options
// or of another build is replaced; its cache survives unless the Go SDK's image changed. What an earlier, killed Up left
// behind is cleaned up first.
func Up(ctx context.Context, opts Options) (Info, error) {
	opts = opts.withDefaults()
	if os.Geteuid() != 0 {
		return Info{}, errors.New("starting the Dagger engine: it needs root: run the sandbox as root")
	}
	at, err := locate()
	if err != nil {
		return Info{}, fmt.Errorf("starting the Dagger engine: %w", err)
	}
	if err := at.check(); err != nil {
		return Info{}, fmt.Errorf("starting the Dagger engine: %w", err)
	}
	built, err := build(ctx, opts.Log)
	if err != nil {
		return Info{}, err
	}
	unlock, err := at.lock(ctx)
	if err != nil {
		return Info{}, fmt.Errorf("starting the Dagger engine: waiting for another sandbox command: %w", err)
	}
	defer unlock()
	info := Info{CLI: filepath.Join(built.programs, "usr/local/bin/dagger"), RunnerHost: "unix://" + at.socket()}
	run, err := at.plan(ctx, opts, built)
	if err != nil {
		return Info{}, fmt.Errorf("starting the Dagger engine: %w", err)
	}
	if at.answersFor(run.key()) {
		return info, nil
	}
	if err := at.stop(ctx, opts.Log); err != nil {
		return Info{}, fmt.Errorf("clearing an earlier Dagger engine: %w", err)
	}
	fmt.Fprintf(opts.Log, "engine: starting Dagger %s\n", Version)
	if err := at.start(ctx, run); err != nil {
		err = fmt.Errorf("starting the Dagger engine: %w", err)
		// The start may have failed because ctx ended; what it left must go all the same.
		if stopErr := at.stop(context.WithoutCancel(ctx), opts.Log); stopErr != nil {
			err = fmt.Errorf("%w (and then: %w)", err, stopErr)
		}
		return Info{}, err
	}
	return info, nil
}

// Down stops the engine and undoes what it did to the host: its processes, control groups, network bridge, packet filter
// rules and the forwarding setting. The engine's cache and the builds stay. It is no error if no engine runs.
func Down(ctx context.Context, log io.Writer) error {
	at, err := locate()
	if err != nil {
		return fmt.Errorf("stopping the Dagger engine: %w", err)
	}
	if _, err := os.Stat(at.dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	unlock, err := at.lock(ctx)
	if err != nil {
		return fmt.Errorf("stopping the Dagger engine: waiting for another sandbox command: %w", err)
	}
	defer unlock()
	if err := at.stop(ctx, logTo(log)); err != nil {
		return fmt.Errorf("stopping the Dagger engine: %w", err)
	}
	return nil
}

func (o Options) withDefaults() Options {
	if o.RegistryAddr == "" {
		o.RegistryAddr = "127.0.0.1:15000"
	}
	if len(o.RegistryNames) == 0 {
		o.RegistryNames = []string{"registry.localhost"}
	}
	o.Log = logTo(o.Log)
	return o
}

func logTo(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

// place is where one sandbox keeps its engine.
type place struct {
	root string // the sandbox's cache
	dir  string // what lives as long as one run of the engine
}

func locate() (place, error) {
	root, err := cache.Root()
	if err != nil {
		return place{}, err
	}
	return place{root: root, dir: filepath.Join(root, "run", "engine")}, nil
}

func (p place) socket() string    { return filepath.Join(p.root, "run", "engine.sock") }
func (p place) state() string     { return filepath.Join(p.root, "engine") }
func (p place) journal() string   { return filepath.Join(p.dir, "host.json") }
func (p place) scratch() string   { return filepath.Join(p.dir, "scratch") }
func (p place) etc() string       { return filepath.Join(p.dir, "etc") }
func (p place) wrappers() string  { return filepath.Join(p.dir, "usr") }
func (p place) script() string    { return filepath.Join(p.dir, "enter.sh") }
func (p place) temporary() string { return filepath.Join(p.state(), "tmp") }

func (p place) daemon() process.Daemon {
	return process.Daemon{Name: "engine", Dir: filepath.Join(p.root, "run"), Grace: stopGrace}
}

func (p place) lock(ctx context.Context) (func(), error) {
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		return nil, err
	}
	return cache.Lock(ctx, filepath.Join(p.root, "run", "engine.lock"))
}

// check refuses places that the engine's mounts would hide or that mount options and socket addresses cannot hold.
func (p place) check() error {
	for _, hidden := range []string{"/usr", "/etc", "/opt", "/run", "/proc", "/sys", "/var/lib/cni", "/var/run"} {
		if p.root == hidden || strings.HasPrefix(p.root, hidden+"/") {
			return fmt.Errorf("the sandbox's cache %s is under %s, which the engine covers: set %s to another directory",
				p.root, hidden, cache.EnvDir)
		}
	}
	if strings.ContainsAny(p.root, ":,\\\n \t") {
		return fmt.Errorf("the sandbox's cache %q has a character that mount options cannot hold: set %s to another directory",
			p.root, cache.EnvDir)
	}
	if len(p.socket()) > maxSocketPath {
		return fmt.Errorf("the socket %s is longer than the %d bytes that a socket address holds: set %s to a shorter path",
			p.socket(), maxSocketPath, cache.EnvDir)
	}
	return nil
}

// answersFor tells whether the engine that was started with this key runs and takes connections.
func (p place) answersFor(key string) bool {
	j, err := readJournal(p.journal())
	if err != nil || j == nil || j.Key != key {
		return false
	}
	if _, ok := p.daemon().Running(); !ok {
		return false
	}
	conn, err := net.DialTimeout("unix", p.socket(), 5*time.Second)
	if err != nil {
		return false
	}
	return conn.Close() == nil
}
