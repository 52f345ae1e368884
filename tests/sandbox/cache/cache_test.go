package cache

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestBuildIsMadeOnceAndIsWhole(t *testing.T) {
	t.Setenv(EnvDir, t.TempDir())
	var made atomic.Int32
	build := func() (string, error) {
		return Build(t.Context(), "thing", "1", func(_ context.Context, dir string) error {
			made.Add(1)
			time.Sleep(50 * time.Millisecond)
			return os.WriteFile(filepath.Join(dir, "file"), []byte("whole"), 0o600)
		})
	}
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			dir, err := build()
			if err != nil {
				t.Error(err)
				return
			}
			data, err := os.ReadFile(filepath.Join(dir, "file"))
			if err != nil || string(data) != "whole" {
				t.Errorf("not whole: %q, %v", data, err)
			}
		})
	}
	group.Wait()
	require.EqualValues(t, 1, made.Load())
}

func TestAFailedBuildLeavesNothingThatLooksFinished(t *testing.T) {
	t.Setenv(EnvDir, t.TempDir())
	broken := errors.New("compiler on fire")
	_, err := Build(t.Context(), "thing", "1", func(_ context.Context, dir string) error {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "half"), nil, 0o600))
		return broken
	})
	require.ErrorIs(t, err, broken)
	dir, err := Build(t.Context(), "thing", "1", func(context.Context, string) error { return nil })
	require.NoError(t, err)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, entries, "what the failed build left")
}

func TestLockEndsWithTheContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := Lock(t.Context(), path)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = Lock(ctx, path)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	unlock()
	unlock, err = Lock(t.Context(), path)
	require.NoError(t, err)
	unlock()
}

func TestKeysOfDifferentPartsDiffer(t *testing.T) {
	require.NotEqual(t, Key("ab", "c"), Key("a", "bc"))
	require.Equal(t, Key("a"), Key("a"))
}
