package release

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/utils/ptr"

	coordination "k8s.io/api/coordination/v1"
)

// versioned is a clientset whose Leases get a new resourceVersion with every write, as the API server's do.
func versioned() *fake.Clientset {
	client := fake.NewClientset()
	version := 0
	client.PrependReactor("*", "leases", func(action clienttesting.Action) (bool, runtime.Object, error) {
		write, ok := action.(clienttesting.UpdateAction)
		if ok {
			version++
			write.GetObject().(*coordination.Lease).ResourceVersion = time.Duration(version).String()
		}
		return false, nil, nil
	})
	return client
}

func TestAcquireTakesAFreeLockAndGivesItBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := versioned()
		held, lock, err := Acquire(t.Context(), client, "ns", "digits", "first")
		require.NoError(t, err)
		require.NoError(t, held.Err())
		require.NoError(t, lock.Release(t.Context()))
		require.Error(t, held.Err())

		_, lock, err = Acquire(t.Context(), client, "ns", "digits", "second")
		require.NoError(t, err)
		require.NoError(t, lock.Release(t.Context()))
	})
}

func TestAcquireNamesTheHolderThatRenews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := versioned()
		_, lock, err := Acquire(t.Context(), client, "ns", "digits", "somebody@host, release 1")
		require.NoError(t, err)
		require.ErrorIs(t, CheckLock(t.Context(), client, "ns", "digits"), ErrLocked)
		started := time.Now()
		_, _, err = Acquire(t.Context(), client, "ns", "digits", "second")
		require.ErrorIs(t, err, ErrLocked)
		require.ErrorContains(t, err, "somebody@host, release 1")
		require.Less(t, time.Since(started), lockDuration, "a living holder is recognised before its lock could have ended")
		require.NoError(t, lock.Release(t.Context()))
		require.NoError(t, CheckLock(t.Context(), client, "ns", "digits"), "a lock that was given back")
	})
}

func TestAcquireTakesOverFromADeadHolderWhateverTheClocksSay(t *testing.T) {
	for name, renewed := range map[string]time.Duration{"clock behind": -time.Hour, "clock ahead": time.Hour} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := versioned()
				_, err := client.CoordinationV1().Leases("ns").Create(t.Context(), &coordination.Lease{
					ObjectMeta: meta.ObjectMeta{Name: "greenlight-digits", Namespace: "ns"},
					Spec: coordination.LeaseSpec{
						HolderIdentity: ptr.To("dead"), RenewTime: ptr.To(meta.NewMicroTime(time.Now().Add(renewed))),
					},
				}, meta.CreateOptions{})
				require.NoError(t, err)
				require.NoError(t, CheckLock(t.Context(), client, "ns", "digits"), "a dead holder")
				started := time.Now()
				_, lock, err := Acquire(t.Context(), client, "ns", "digits", "second")
				require.NoError(t, err)
				require.GreaterOrEqual(t, time.Since(started), lockDuration)
				require.NoError(t, lock.Release(t.Context()))
			})
		})
	}
}

func TestALostLockEndsTheRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := versioned()
		held, lock, err := Acquire(t.Context(), client, "ns", "digits", "first")
		require.NoError(t, err)
		lease, err := client.CoordinationV1().Leases("ns").Get(t.Context(), "greenlight-digits", meta.GetOptions{})
		require.NoError(t, err)
		lease.Spec.HolderIdentity = ptr.To("thief")
		_, err = client.CoordinationV1().Leases("ns").Update(t.Context(), lease, meta.UpdateOptions{})
		require.NoError(t, err)
		<-held.Done()
		require.ErrorIs(t, context.Cause(held), ErrLockLost)
		require.ErrorContains(t, context.Cause(held), "thief")
		require.NoError(t, lock.Release(t.Context()))
		lease, err = client.CoordinationV1().Leases("ns").Get(t.Context(), "greenlight-digits", meta.GetOptions{})
		require.NoError(t, err)
		require.Equal(t, "thief", *lease.Spec.HolderIdentity, "somebody else's lock is not given back")
	})
}
