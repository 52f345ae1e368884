package release

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/greenlight-ci/greenlight/pipelines/deploy"
	"github.com/greenlight-ci/greenlight/pipelines/report"
)

// giveUp undoes what the release did, according to the phase that it failed in, records the end, and returns the error
// that says how the release ended and why.
func (r *run) giveUp(ctx context.Context, cause error) error {
	if lost := context.Cause(ctx); errors.Is(lost, ErrLockLost) || errors.Is(cause, ErrJournalMoved) {
		// Whoever holds the lock now reads the journal and compensates; two of us would work against each other.
		return fmt.Errorf("%w: %w; the release that took over restores what this one left", cause, ErrLockLost)
	}
	if by, ok := interrupted(ctx); ok {
		cause = fmt.Errorf("ended by the caller (%s): %w", by, cause)
	}
	r.say("%s", oneLine(cause))
	// The caller's context may have ended, which must not keep the old version from coming back.
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), compensationTimeout)
	defer cancel()
	moved, err := r.compensate(bounded, r.entry)
	if err != nil {
		// The cause is not wrapped: a gate's no promises that live is as it was.
		return fmt.Errorf("%s; then the previous state could not be restored, which the next release or rollback will try again: %w", oneLine(cause), err)
	}
	status, failure := report.Failed, cause
	switch {
	case moved:
		status, failure = report.RolledBack, &ending{kind: ErrRolledBack, cause: cause}
	case errors.Is(cause, ErrRejected):
		status = report.Rejected
	}
	if err := r.end(bounded, status, oneLine(cause)); err != nil {
		return errors.Join(failure, err)
	}
	return failure
}

// recover does for an interrupted release what that release can no longer do itself.
func (r *run) recover(ctx context.Context, left *Entry) error {
	r.say("release %s of %s was interrupted while it was %s; restoring", left.ID, left.Version, left.Phase)
	started := time.Now()
	baked := left.Phase == Baked
	moved, err := r.compensate(ctx, left)
	if err != nil {
		return err
	}
	status := report.Failed
	switch {
	case baked:
		status = report.Released
	case moved:
		status = report.RolledBack
	}
	left.Phase, left.Status, left.Reason = Ended, string(status), "interrupted, restored by "+r.ID
	if err := r.journal.Write(ctx, left); err != nil {
		return err
	}
	r.report.Stages = append(r.report.Stages, report.Stage{
		Name: "recover", Status: report.Passed, StartedAt: started.UTC(), Seconds: time.Since(started).Seconds(),
		Detail: fmt.Sprintf("release %s of %s, interrupted, is now %s", left.ID, left.Version, status),
	})
	return nil
}

// compensate leaves one colour with pods and the traffic: the previous one, unless the candidate had been found good. It
// may be repeated, and stops at nothing that a process killed in the middle of it can have left. It says whether users'
// traffic had been on the candidate and was moved back.
func (r *run) compensate(ctx context.Context, entry *Entry) (moved bool, err error) {
	switch entry.Phase {
	case Started:
		return false, r.scaleToZero(ctx, entry.Candidate)
	case Switching, RollingBack:
		return r.moveBack(ctx, entry)
	case Baked:
		if entry.Previous == "" {
			return false, nil
		}
		return false, r.scaleToZero(ctx, entry.Previous)
	case Ended:
		return false, nil
	default:
		return false, fmt.Errorf("the journal has the unknown phase %q", entry.Phase)
	}
}

// moveBack moves the traffic to the previous colour first, which takes seconds, and cleans up second.
func (r *run) moveBack(ctx context.Context, entry *Entry) (moved bool, err error) {
	// A move that was begun before this process looks finished to it; the phase remembers that there was one.
	moved = entry.Phase == RollingBack
	state, err := deploy.Colours(ctx, r.Client, r.Namespace, r.Config.Service)
	if err != nil {
		return moved, err
	}
	if state.Live != entry.Previous {
		moved = true
		if entry.Phase != RollingBack {
			entry.Phase = RollingBack
			if err := r.journal.Write(ctx, entry); err != nil {
				return moved, err
			}
		}
		if err := r.restoreTraffic(ctx, entry, state); err != nil {
			return moved, err
		}
	}
	return moved, r.scaleToZero(ctx, entry.Candidate)
}

// restoreTraffic makes live what was live before the release.
func (r *run) restoreTraffic(ctx context.Context, entry *Entry, state deploy.State) error {
	if entry.Previous == "" {
		return deploy.DeleteLiveService(ctx, r.target(entry.Candidate, compensationTimeout))
	}
	if state.Colours[entry.Previous].Ready == 0 {
		return fmt.Errorf("the previous colour %s has no ready pod to take the traffic; %s keeps it", entry.Previous, state.Live)
	}
	started := time.Now()
	if err := r.route(ctx, entry.Previous); err != nil {
		return fmt.Errorf("moving the traffic back: %w", err)
	}
	r.say("traffic is back on %s after %.1f s", entry.Previous, time.Since(started).Seconds())
	return nil
}

// scaleToZero takes a colour's pods and GPUs away. deploy refuses the live colour, whatever the journal says.
func (r *run) scaleToZero(ctx context.Context, colour string) error {
	if err := deploy.Scale(ctx, r.target(colour, compensationTimeout), 0); err != nil {
		return fmt.Errorf("scaling %s to zero: %w", colour, err)
	}
	r.account()
	return nil
}

// account closes the account of the GPUs that two colours held at a time.
func (r *run) account() {
	if r.deployedAt.IsZero() || r.entry == nil || r.entry.Previous == "" {
		return
	}
	held := float64(r.Config.Replicas) * float64(*r.Config.GPU.Count)
	r.report.GPUSecondsDoubled = held * time.Since(r.deployedAt).Seconds()
}
