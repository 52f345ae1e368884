package release

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/greenlight-ci/greenlight/pipelines/deploy"
	"github.com/greenlight-ci/greenlight/pipelines/image"
	"github.com/greenlight-ci/greenlight/pipelines/report"
)

// Run releases the artifact. The report is filled however the release ends, and is nil only where nothing could begin.
// An error wraps ErrRejected, ErrRolledBack, ErrLocked or ErrUsage where it is one of these.
func Run(ctx context.Context, o Options) (*report.Report, error) {
	r := newRun(o)
	r.report.Version = o.Version
	if ref, err := image.ParsePinned(o.Image); err == nil {
		r.report.Image, r.report.Digest = ref.Pinned(), ref.Digest
	}
	err := r.release(ctx)
	return r.finish(ctx, err), err
}

// A run is one release or rollback under way.
type run struct {
	Options
	report *report.Report
	// The journal and its entry, once the lock is held.
	journal *Journal
	entry   *Entry
	// live is the state of the live Service when the run began.
	live deploy.State
	// deployedAt is when the candidate began to take GPUs.
	deployedAt time.Time
	// watch looks at the live Service from just before the switch to the end of the bake.
	watch *watcher
}

func newRun(o Options) *run {
	return &run{Options: o, report: &report.Report{ID: o.ID, Service: o.Config.Service}}
}

// release holds the lock from the first change to the last.
func (r *run) release(ctx context.Context) error {
	if err := r.stage(ctx, step{name: "preflight", run: r.preflight}); err != nil {
		return err
	}
	return r.locked(ctx, func(ctx context.Context) error {
		if err := r.begin(ctx); err != nil {
			return err
		}
		return r.follow(ctx, r.plan())
	})
}

// locked runs do while this run holds the lock, after it has restored what an interrupted release left.
func (r *run) locked(ctx context.Context, do func(context.Context) error) (err error) {
	held, lock, err := Acquire(ctx, r.Client, r.Namespace, r.Config.Service, r.Holder+", release "+r.ID)
	if err != nil {
		return err
	}
	defer func() {
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
		defer cancel()
		err = errors.Join(err, lock.Release(bounded))
	}()
	var left *Entry
	r.journal, left, err = OpenJournal(held, r.Client, r.Namespace, r.Config.Service)
	if err != nil {
		return err
	}
	if left != nil && left.Phase != Ended {
		if err := r.recover(held, left); err != nil {
			return fmt.Errorf("restoring what the interrupted release %s left: %w", left.ID, err)
		}
	}
	return do(held)
}

// begin reads what is live and opens the journal's entry.
func (r *run) begin(ctx context.Context) error {
	var err error
	if r.live, err = deploy.Colours(ctx, r.Client, r.Namespace, r.Config.Service); err != nil {
		return err
	}
	r.entry = &Entry{
		ID: r.ID, Version: r.Version, Image: r.Image, Candidate: r.live.Candidate(), Previous: r.live.Live,
		Phase: Started, StartedAt: time.Now().UTC(),
	}
	return r.journal.Write(ctx, r.entry)
}

// follow runs the steps in order, each between its intent and its outcome in the journal, and compensates for the first
// that does not succeed.
func (r *run) follow(ctx context.Context, steps []step) error {
	for _, s := range steps {
		if s.phase != "" {
			r.entry.Phase = s.phase
		}
		err := r.journal.Intend(ctx, r.entry, s.name)
		if err == nil {
			err = r.stage(ctx, s)
			err = errors.Join(err, r.conclude(ctx, err))
		}
		if err != nil {
			return r.giveUp(ctx, err)
		}
	}
	return r.end(ctx, report.Released, "")
}

func (r *run) conclude(ctx context.Context, stepErr error) error {
	if stepErr == nil {
		return r.journal.Conclude(ctx, r.entry, "passed")
	}
	// The compensation records the failure again; not being able to record it here must not hide it.
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_ = r.journal.Conclude(bounded, r.entry, oneLine(stepErr))
	return nil
}

// stage runs one step and adds its line to the report.
func (r *run) stage(ctx context.Context, s step) error {
	r.say("%-9s …", s.name)
	started := time.Now()
	result, err := s.run(ctx)
	line := report.Stage{
		Name: s.name, Status: report.Passed, StartedAt: started.UTC(),
		Seconds: time.Since(started).Seconds(), Detail: result.detail,
	}
	if result.skipped {
		line.Status = report.Skipped
	}
	if !result.startedAt.IsZero() {
		line.StartedAt, line.Seconds = result.startedAt, result.seconds
	}
	if err != nil {
		line.Status, line.Detail = report.StageFailed, oneLine(err)
		if errors.Is(err, ErrRejected) {
			line.Status = report.StageNo
		}
	}
	r.report.Stages = append(r.report.Stages, line)
	r.say("%-9s %s in %.1f s: %s", s.name, line.Status, line.Seconds, line.Detail)
	return err
}

// end closes the journal's entry. Nothing may be left to do when it is called.
func (r *run) end(ctx context.Context, status report.Status, reason string) error {
	r.entry.Phase, r.entry.Status, r.entry.Reason = Ended, string(status), reason
	return r.journal.Write(ctx, r.entry)
}

// finish completes the report from how the run ended and what serves now.
func (r *run) finish(ctx context.Context, err error) *report.Report {
	r.watch.close()
	r.report.Status = report.Released
	switch {
	case err == nil:
	case errors.Is(err, ErrRolledBack):
		r.report.Status = report.RolledBack
	case errors.Is(err, ErrRejected):
		r.report.Status = report.Rejected
	default:
		r.report.Status = report.Failed
	}
	if err != nil {
		r.report.Reason = oneLine(err)
	}
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	state, stateErr := deploy.Colours(bounded, r.Client, r.Namespace, r.Config.Service)
	if stateErr == nil && state.Live != "" {
		serving := state.Colours[state.Live]
		r.report.Live = report.Live{Colour: state.Live, Version: serving.Version, Image: serving.Image}
	}
	return r.report
}
