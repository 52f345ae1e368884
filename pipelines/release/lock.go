package release

import (
	"context"
	"errors"
	"fmt"
	"time"

	coordination "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"
)

// ErrLocked says that another release of the service holds the lock.
var ErrLocked = errors.New("another release holds the lock")

// ErrLockLost says that the lock could not be renewed in time, so that another release may have taken it.
var ErrLockLost = errors.New("the release lock was lost")

const (
	lockDuration = 15 * time.Second
	lockRenewal  = 3 * time.Second
)

// A Lock is a Lease that one release of a service holds and renews. The Lease of a holder that died is taken over after
// it went unrenewed for its duration, as this process's own clock measures it: clocks of other machines are not trusted.
type Lock struct {
	client    kubernetes.Interface
	namespace string
	name      string
	holder    string
	cancel    context.CancelCauseFunc
	done      chan struct{}
}

// Acquire takes the lock of service for holder. It returns a context that ends when the lock is lost, with the cause
// ErrLockLost. Where another holder renews the Lease while Acquire looks on, the error wraps ErrLocked and names it.
func Acquire(ctx context.Context, client kubernetes.Interface, namespace, service, holder string) (context.Context, *Lock, error) {
	l := &Lock{client: client, namespace: namespace, name: "greenlight-" + service, holder: holder, done: make(chan struct{})}
	var seen *coordination.Lease
	var seenAt time.Time
	for {
		lease, err := l.take(ctx, seen, seenAt)
		switch {
		case err == nil:
			held, cancel := context.WithCancelCause(ctx)
			l.cancel = cancel
			go l.renew(held)
			return held, l, nil
		case !errors.Is(err, ErrLocked):
			return nil, nil, err
		case seen != nil && renewedSince(seen, lease):
			return nil, nil, err
		case seen == nil || ptr.Deref(seen.Spec.HolderIdentity, "") != ptr.Deref(lease.Spec.HolderIdentity, ""):
			seen, seenAt = lease, time.Now()
		}
		select {
		case <-ctx.Done():
			return nil, nil, fmt.Errorf("waiting for the lock: %w", context.Cause(ctx))
		case <-time.After(time.Second):
		}
	}
}

// CheckLock says whether a living release holds the lock of service, without taking it: the error wraps ErrLocked and
// names the holder. A holder is taken to live if it renews the Lease while CheckLock looks on.
func CheckLock(ctx context.Context, client kubernetes.Interface, namespace, service string) error {
	l := &Lock{client: client, namespace: namespace, name: "greenlight-" + service}
	read := func() (*coordination.Lease, error) {
		lease, err := client.CoordinationV1().Leases(namespace).Get(ctx, l.name, meta.GetOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("reading the Lease %s/%s: %w", namespace, l.name, err)
		}
		return lease, nil
	}
	seen, err := read()
	if err != nil || seen == nil || ptr.Deref(seen.Spec.HolderIdentity, "") == "" {
		return err
	}
	select {
	case <-time.After(lockRenewal + time.Second):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	lease, err := read()
	if err != nil || lease == nil || ptr.Deref(lease.Spec.HolderIdentity, "") == "" || !renewedSince(seen, lease) {
		return err
	}
	return l.heldBy(*lease.Spec.HolderIdentity)
}

func (l *Lock) heldBy(holder string) error {
	return fmt.Errorf("%w: %s/%s is held by %s; wait for it, or end it and try again after %s", ErrLocked, l.namespace, l.name, holder, lockDuration)
}

// take writes the Lease if it is free, released, or unchanged since it was seen a whole duration ago.
func (l *Lock) take(ctx context.Context, seen *coordination.Lease, seenAt time.Time) (*coordination.Lease, error) {
	leases := l.client.CoordinationV1().Leases(l.namespace)
	now := meta.NowMicro()
	lease, err := leases.Get(ctx, l.name, meta.GetOptions{})
	if apierrors.IsNotFound(err) {
		lease = &coordination.Lease{
			ObjectMeta: meta.ObjectMeta{Name: l.name, Namespace: l.namespace, Labels: map[string]string{"app.kubernetes.io/managed-by": "greenlight"}},
			Spec:       l.spec(now),
		}
		created, err := leases.Create(ctx, lease, meta.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			return nil, fmt.Errorf("%w", ErrLocked)
		}
		if err != nil {
			return nil, fmt.Errorf("creating the Lease %s/%s: %w", l.namespace, l.name, err)
		}
		return created, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the Lease %s/%s: %w", l.namespace, l.name, err)
	}
	holder := ptr.Deref(lease.Spec.HolderIdentity, "")
	dead := seen != nil && !renewedSince(seen, lease) && time.Since(seenAt) > lockDuration
	if holder != "" && !dead {
		return lease, l.heldBy(holder)
	}
	lease.Spec = l.spec(now)
	// The resourceVersion that was read makes this fail if anybody else took it in between.
	updated, err := leases.Update(ctx, lease, meta.UpdateOptions{})
	if apierrors.IsConflict(err) {
		return lease, fmt.Errorf("%w: somebody else took it just now", ErrLocked)
	}
	if err != nil {
		return nil, fmt.Errorf("taking the Lease %s/%s: %w", l.namespace, l.name, err)
	}
	return updated, nil
}

func renewedSince(seen, lease *coordination.Lease) bool {
	return seen.ResourceVersion != lease.ResourceVersion
}

func (l *Lock) spec(now meta.MicroTime) coordination.LeaseSpec {
	return coordination.LeaseSpec{
		HolderIdentity:       ptr.To(l.holder),
		LeaseDurationSeconds: ptr.To(int32(lockDuration.Seconds())),
		AcquireTime:          ptr.To(now),
		RenewTime:            ptr.To(now),
	}
}

func (l *Lock) renew(ctx context.Context) {
	defer close(l.done)
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(lockRenewal):
		}
		err := l.renewOnce(ctx)
		switch {
		case err == nil:
			last = time.Now()
		case errors.Is(err, ErrLockLost):
			l.cancel(err)
			return
		case time.Since(last) > lockDuration-lockRenewal:
			l.cancel(fmt.Errorf("%w: not renewed for %s: %v", ErrLockLost, time.Since(last).Round(time.Second), err))
			return
		}
	}
}

func (l *Lock) renewOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lockRenewal)
	defer cancel()
	leases := l.client.CoordinationV1().Leases(l.namespace)
	lease, err := leases.Get(ctx, l.name, meta.GetOptions{})
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("%w: the Lease %s/%s was deleted", ErrLockLost, l.namespace, l.name)
	}
	if err != nil {
		return err
	}
	if holder := ptr.Deref(lease.Spec.HolderIdentity, ""); holder != l.holder {
		return fmt.Errorf("%w: %s took it", ErrLockLost, holder)
	}
	lease.Spec.RenewTime = ptr.To(meta.NowMicro())
	_, err = leases.Update(ctx, lease, meta.UpdateOptions{})
	return err
}

// Release gives the lock back. It waits for a renewal under way, so that the Lease stays free.
func (l *Lock) Release(ctx context.Context) error {
	l.cancel(nil)
	<-l.done
	leases := l.client.CoordinationV1().Leases(l.namespace)
	lease, err := leases.Get(ctx, l.name, meta.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("releasing the lock: %w", err)
	}
	if ptr.Deref(lease.Spec.HolderIdentity, "") != l.holder {
		return nil
	}
	lease.Spec.HolderIdentity = nil
	lease.Spec.RenewTime = ptr.To(meta.NowMicro())
	if _, err := leases.Update(ctx, lease, meta.UpdateOptions{}); err != nil {
		return fmt.Errorf("releasing the lock: %w", err)
	}
	return nil
}
