package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/greenlight-ci/greenlight/tests/sandbox/cache"
)

// tryLock takes the sandbox's lock under root, and calls busy once if another command holds it.
func tryLock(ctx context.Context, root string, busy func()) (func(), error) {
	dir := filepath.Join(root, "run")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "sandbox.lock")
	quick, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	unlock, err := cache.Lock(quick, path)
	if !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
		return unlock, err
	}
	busy()
	return cache.Lock(ctx, path)
}
