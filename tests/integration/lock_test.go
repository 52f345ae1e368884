package integration

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/greenlight-ci/greenlight/pipelines/release"
)

// TestTwoReleasesCannotHoldTheLock: of many who try at once, exactly one gets it.
func TestTwoReleasesCannotHoldTheLock(t *testing.T) {
	s := newSandbox(t)
	const contenders = 4
	type attempt struct {
		lock *release.Lock
		err  error
	}
	attempts := make(chan attempt, contenders)
	for i := range contenders {
		go func() {
			_, lock, err := release.Acquire(t.Context(), s.client, s.namespace, "digits", fmt.Sprintf("contender %d", i))
			attempts <- attempt{lock, err}
		}()
	}
	var held []*release.Lock
	for range contenders {
		a := <-attempts
		if a.err == nil {
			held = append(held, a.lock)
		} else {
			require.ErrorIs(t, a.err, release.ErrLocked)
		}
	}
	require.Len(t, held, 1)
	require.NoError(t, held[0].Release(t.Context()))
}

// TestTheJournalHasOneWriter: a writer that was overtaken is told so, by the API server's resourceVersion.
func TestTheJournalHasOneWriter(t *testing.T) {
	s := newSandbox(t)
	first, _, err := release.OpenJournal(t.Context(), s.client, s.namespace, "digits")
	require.NoError(t, err)
	entry := &release.Entry{ID: "1", Phase: release.Started}
	require.NoError(t, first.Write(t.Context(), entry))
	second, left, err := release.OpenJournal(t.Context(), s.client, s.namespace, "digits")
	require.NoError(t, err)
	left.ID = "2"
	require.NoError(t, second.Write(t.Context(), left))
	require.ErrorIs(t, first.Write(t.Context(), entry), release.ErrJournalMoved)
}
