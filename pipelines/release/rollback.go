package release

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/greenlight-ci/greenlight/pipelines/deploy"
	"github.com/greenlight-ci/greenlight/pipelines/image"
	"github.com/greenlight-ci/greenlight/pipelines/report"
	"github.com/greenlight-ci/greenlight/pipelines/sign"
	"github.com/greenlight-ci/greenlight/pipelines/traffic"
)

// Rollback moves the traffic back to the previous version, from warm or cold. After a release that was killed, restoring
// what that release left may be all that is to do: then the previous version serves already and the error is nil.
// Without a previous version the error wraps ErrNothingToRollBack.
func Rollback(ctx context.Context, o Options) (*report.Report, error) {
	r := newRun(o)
	err := r.locked(ctx, func(ctx context.Context) error {
		if len(r.report.Stages) > 0 {
			// An interrupted release was rolled back just now, which is what was asked for.
			return nil
		}
		return r.rollback(ctx)
	})
	return r.finish(ctx, err), err
}

func (r *run) rollback(ctx context.Context) error {
	var err error
	if r.live, err = deploy.Colours(ctx, r.Client, r.Namespace, r.Config.Service); err != nil {
		return err
	}
	if r.live.Live == "" {
		return usage(fmt.Errorf("%w: nothing is live", ErrNothingToRollBack))
	}
	to := r.live.Candidate()
	previous := r.live.Colours[to]
	if !previous.Exists {
		return usage(fmt.Errorf("%w: %s holds no version; it was pruned, or there was no earlier release", ErrNothingToRollBack, to))
	}
	r.Version, r.Image = previous.Version, previous.Image
	r.report.Version = previous.Version
	if ref, err := image.ParsePinned(previous.Image); err == nil {
		r.report.Image, r.report.Digest = ref.Pinned(), ref.Digest
	}
	r.entry = &Entry{
		ID: r.ID, Version: previous.Version, Image: previous.Image, Candidate: to, Previous: r.live.Live,
		Phase: Started, StartedAt: time.Now().UTC(),
	}
	if err := r.journal.Write(ctx, r.entry); err != nil {
		return err
	}
	return r.follow(ctx, []step{
		{name: "verify", run: r.verifyPrevious},
		{name: "deploy", run: r.wake},
		{name: "switch", phase: Switching, run: r.switchBack},
		{name: "teardown", phase: Baked, run: r.teardownNow},
	})
}

// verifyPrevious checks that what is about to get the traffic is still what was signed.
func (r *run) verifyPrevious(ctx context.Context) (result, error) {
	if r.PublicKey.File == "" {
		return result{skipped: true, detail: "no public key was given"}, nil
	}
	verified, err := sign.Verify(ctx, sign.VerifyOptions{Reference: r.Image, Key: r.PublicKey, Registry: r.Registry})
	if errors.Is(err, sign.ErrUnverified) {
		return result{}, rejected(err)
	}
	if err != nil {
		return result{}, err
	}
	return result{detail: "key " + shortKey(verified.KeyID)}, nil
}

// wake brings the previous colour's pods back as they were.
func (r *run) wake(ctx context.Context) (result, error) {
	r.deployedAt = time.Now()
	replicas := max(r.live.Colours[r.live.Live].Replicas, 1)
	if err := deploy.Scale(ctx, r.target(r.entry.Candidate, r.Config.ReadyTimeout.Std()), replicas); err != nil {
		if errors.Is(err, deploy.ErrNotReady) {
			return result{}, rejected(err)
		}
		return result{}, err
	}
	return result{detail: fmt.Sprintf("%s: %d ready", r.entry.Candidate, replicas)}, nil
}

// switchBack moves the traffic. With a probe it is confirmed by the data path; without one, a rollback that cannot be
// watched is better than none.
func (r *run) switchBack(ctx context.Context) (result, error) {
	if r.ProbeImage != "" {
		return r.switchTraffic(ctx)
	}
	started := time.Now()
	router, err := r.router(1)
	if err != nil {
		return result{}, err
	}
	if err := router.Shift(ctx, traffic.Weights{r.entry.Candidate: 100, r.entry.Previous: 0}); err != nil {
		return result{}, err
	}
	r.report.Switch = &report.Switch{Router: router.Name(), Seconds: time.Since(started).Seconds()}
	return result{detail: fmt.Sprintf("%s to %s, not watched: no probe image was given", r.entry.Previous, r.entry.Candidate)}, nil
}

// teardownNow takes the rolled-back version down at once: nobody wants it kept warm.
func (r *run) teardownNow(ctx context.Context) (result, error) {
	if err := r.scaleToZero(ctx, r.entry.Previous); err != nil {
		return result{}, err
	}
	return result{detail: r.entry.Previous + " is at zero"}, nil
}
