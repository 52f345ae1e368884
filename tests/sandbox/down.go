package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/greenlight-ci/greenlight/tests/sandbox/cache"
	"github.com/greenlight-ci/greenlight/tests/sandbox/cluster"
	"github.com/greenlight-ci/greenlight/tests/sandbox/engine"
	"github.com/greenlight-ci/greenlight/tests/sandbox/registry"
)

// removal says what down removes beside what runs.
type removal struct{ cache, packages bool }

func parseRemoval(args []string) (removal, error) {
	var r removal
	flags := flag.NewFlagSet("down", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.BoolVar(&r.cache, "cache", false, "")
	flags.BoolVar(&r.packages, "packages", false, "")
	if err := flags.Parse(args); err != nil {
		return r, fmt.Errorf("%w: %w", errUsage, err)
	}
	if flags.NArg() > 0 {
		return r, fmt.Errorf("%w: down takes no argument %q", errUsage, flags.Arg(0))
	}
	return r, nil
}

// down ends everything, whether or not up came to its end. A component that fails does not keep the others from being
// taken down.
func down(ctx context.Context, what removal, log io.Writer) error {
	progress := newProgress(log)
	defer progress.stop()
	root, err := cache.Root()
	if err != nil {
		return err
	}
	if _, err := os.Stat(root); errors.Is(err, os.ErrNotExist) {
		progress.printf("nothing to take down")
		return nil
	}
	unlock, err := lockSandbox(ctx, root, progress)
	if err != nil {
		return err
	}
	defer unlock()
	var failed []error
	for _, one := range []struct {
		name string
		down func(context.Context, io.Writer) error
	}{
		{"cluster", cluster.Down},
		{"engine", engine.Down},
		{"registry", registry.Down},
	} {
		failed = append(failed, progress.step(ctx, one.name, one.down))
	}
	path, err := environmentPath()
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		failed = append(failed, err)
	}
	if what.packages {
		failed = append(failed, progress.step(ctx, "packages", func(ctx context.Context, log io.Writer) error {
			return removePackages(ctx, root, log)
		}))
	}
	// Files are removed only when nothing uses them any more.
	if err := errors.Join(failed...); err != nil || !what.cache {
		return err
	}
	return progress.step(ctx, "cache", func(_ context.Context, log io.Writer) error {
		return removeCache(root, log)
	})
}

// removeCache removes what is the sandbox's in its cache directory, name by name: the directory may be one that the
// caller shares with something else.
func removeCache(root string, log io.Writer) error {
	var failed []error
	for _, name := range []string{"build", "debs", "registry", "engine", "cluster", "run"} {
		failed = append(failed, os.RemoveAll(filepath.Join(root, name)))
	}
	if err := errors.Join(failed...); err != nil {
		return fmt.Errorf("removing the cache: %w", err)
	}
	_, _ = fmt.Fprintf(log, "removed the builds in %s\n", root)
	// Succeeds if nothing else is in it.
	_ = os.Remove(root)
	return nil
}
