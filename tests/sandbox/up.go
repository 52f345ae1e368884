package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"runtime"

	"golang.org/x/sync/errgroup"

	"github.com/greenlight-ci/greenlight/tests/sandbox/advisories"
	"github.com/greenlight-ci/greenlight/tests/sandbox/cache"
	"github.com/greenlight-ci/greenlight/tests/sandbox/cluster"
	"github.com/greenlight-ci/greenlight/tests/sandbox/engine"
	"github.com/greenlight-ci/greenlight/tests/sandbox/images"
	"github.com/greenlight-ci/greenlight/tests/sandbox/registry"
)

// up builds what is missing and, unless buildOnly, starts what does not run.
func up(ctx context.Context, log io.Writer, buildOnly bool) error {
	h := inspectHost(ctx)
	p, err := h.decide()
	if err != nil {
		return err
	}
	progress := newProgress(log)
	defer progress.stop()
	if !p.ownRegistry() {
		progress.printf("using the installed dagger (%s) with Docker, the cluster of %s and the registry %s: nothing to start", h.dagger, h.kubeconfig, h.registry)
		return saveEnvironment(callersEnvironment(h))
	}
	root, err := cache.Root()
	if err != nil {
		return err
	}
	unlock, err := lockSandbox(ctx, root, progress)
	if err != nil {
		return err
	}
	defer unlock()
	if err := progress.step(ctx, "packages", func(ctx context.Context, log io.Writer) error {
		return installMissing(ctx, root, packages(p), log)
	}); err != nil {
		return err
	}
	if buildOnly {
		return buildAll(ctx, p, progress)
	}
	state, err := startAll(ctx, p, h, progress)
	if err != nil {
		return err
	}
	if err := saveEnvironment(state); err != nil {
		return err
	}
	progress.printf("the sandbox is up. To use it by hand: eval \"$(go run ./tests/sandbox env)\"")
	return nil
}

// startAll runs the components in two lanes, three where there are processors for it: compiling fills one, while the
// other mostly waits for packages to download and unpack.
func startAll(ctx context.Context, p plan, h host, progress *progress) (environment, error) {
	var (
		pushed   images.Info
		database string
		dagger   engine.Info
		node     cluster.Info
	)
	if err := progress.step(ctx, "registry", func(ctx context.Context, log io.Writer) error {
		_, err := registry.Up(ctx, registry.Options{Log: log})
		return err
	}); err != nil {
		return nil, err
	}
	imageLane := func(ctx context.Context) error {
		if err := progress.step(ctx, "images", func(ctx context.Context, log io.Writer) (err error) {
			pushed, err = images.EnsureAll(ctx, registry.Addr, log)
			return err
		}); err != nil {
			return err
		}
		return progress.step(ctx, "advisories", func(ctx context.Context, log io.Writer) (err error) {
			database, err = advisories.Ensure(ctx, advisories.Options{Debian: debianSources(pushed), Log: log})
			return err
		})
	}
	engineLane := func(ctx context.Context) error {
		if !p.ownEngine {
			return nil
		}
		return progress.step(ctx, "engine", func(ctx context.Context, log io.Writer) (err error) {
			dagger, err = engine.Up(ctx, engine.Options{RegistryAddr: registry.Addr, Log: log})
			return err
		})
	}
	clusterLane := func(ctx context.Context) error {
		if !p.ownCluster {
			return nil
		}
		return progress.step(ctx, "cluster", func(ctx context.Context, log io.Writer) (err error) {
			node, err = cluster.Up(ctx, cluster.Options{RegistryPort: registry.Port, Log: log})
			return err
		})
	}
	if err := lanes(ctx, imageLane, clusterLane, engineLane); err != nil {
		return nil, err
	}
	e := sandboxEnvironment(pushed, database)
	e.addEngine(p, h, dagger)
	e.addCluster(p, h, node)
	return e, nil
}

func buildAll(ctx context.Context, p plan, progress *progress) error {
	step := func(name string, wanted bool, build func(context.Context, io.Writer) error) func(context.Context) error {
		return func(ctx context.Context) error {
			if !wanted {
				return nil
			}
			return progress.step(ctx, name, build)
		}
	}
	return lanes(ctx,
		step("images", true, func(ctx context.Context, log io.Writer) error {
			_, err := images.BuildAll(ctx, log)
			return err
		}),
		step("cluster", p.ownCluster, cluster.Build),
		step("engine", p.ownEngine, engine.Build),
	)
}

// lanes runs first beside the others, and those one after the other if there are too few processors for all at once.
func lanes(ctx context.Context, first func(context.Context) error, others ...func(context.Context) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return first(ctx) })
	if runtime.NumCPU() >= 4 {
		for _, lane := range others {
			group.Go(func() error { return lane(ctx) })
		}
	} else {
		group.Go(func() error {
			for _, lane := range others {
				if err := lane(ctx); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// debianSources are the changelogs of the base image and of the host.
func debianSources(pushed images.Info) []advisories.DebianSource {
	out := []advisories.DebianSource{{Release: images.DebianRelease, Pattern: filepath.Join(pushed.Changelogs, "*.gz")}}
	if own, ok := advisories.HostSource(); ok {
		out = append(out, own)
	}
	return out
}

func packages(p plan) []string {
	all := append([]string{}, images.DebianPackages()...)
	if p.ownEngine {
		all = append(all, engine.DebianPackages()...)
	}
	if p.ownCluster {
		all = append(all, cluster.DebianPackages()...)
	}
	return all
}

// lockSandbox keeps two commands from changing the sandbox at once.
func lockSandbox(ctx context.Context, root string, progress *progress) (func(), error) {
	unlock, err := tryLock(ctx, root, func() {
		progress.printf("waiting for another sandbox command to end")
	})
	if err != nil {
		return nil, fmt.Errorf("waiting for another sandbox command: %w", err)
	}
	return unlock, nil
}
