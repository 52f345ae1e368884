// Package cache keeps what the sandbox builds, keyed by name and version, under the user's cache directory, so that a
// fresh clone on the same machine reuses it.
package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// EnvDir overrides the directory that Root returns.
const EnvDir = "GREENLIGHT_SANDBOX_CACHE"

// Root is $GREENLIGHT_SANDBOX_CACHE, or greenlight/ under the user's cache directory ($XDG_CACHE_HOME or ~/.cache).
func Root() (string, error) {
	if dir := os.Getenv(EnvDir); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("finding the user's cache directory: %w (set %s)", err, EnvDir)
	}
	return filepath.Join(dir, "greenlight"), nil
}

// Build returns the directory <root>/build/<name>/<key>. Where it does not exist, make is called with an empty directory
// beside it, which takes its place at once when make succeeds: a directory that Build returns is always whole. Two
// processes that ask for the same build wait for each other.
func Build(ctx context.Context, name, key string, make func(ctx context.Context, dir string) error) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	parent := filepath.Join(root, "build", name)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return "", fmt.Errorf("creating the cache for %s: %w", name, err)
	}
	final := filepath.Join(parent, key)
	if isDir(final) {
		return final, nil
	}
	unlock, err := Lock(ctx, filepath.Join(parent, key+".lock"))
	if err != nil {
		return "", fmt.Errorf("waiting for another build of %s: %w", name, err)
	}
	defer unlock()
	if isDir(final) {
		return final, nil
	}
	partial := final + ".partial"
	if err := os.RemoveAll(partial); err != nil {
		return "", fmt.Errorf("clearing an unfinished build of %s: %w", name, err)
	}
	if err := os.MkdirAll(partial, 0o755); err != nil {
		return "", fmt.Errorf("creating the build directory of %s: %w", name, err)
	}
	if err := make(ctx, partial); err != nil {
		return "", fmt.Errorf("building %s: %w", name, err)
	}
	if err := os.Rename(partial, final); err != nil {
		return "", fmt.Errorf("keeping the build of %s: %w", name, err)
	}
	return final, nil
}

// Key is a short, stable key made of all its parts.
func Key(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

// Lock takes an exclusive lock on the file at path, created if need be, and returns the function that releases it. The
// kernel releases it too when the process ends, however it ends.
func Lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if err != syscall.EWOULDBLOCK {
			_ = f.Close()
			return nil, fmt.Errorf("locking %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}
