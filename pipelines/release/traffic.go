package release

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/greenlight-ci/greenlight/pipelines/deploy"
	"github.com/greenlight-ci/greenlight/pipelines/observe"
	"github.com/greenlight-ci/greenlight/pipelines/report"
	"github.com/greenlight-ci/greenlight/pipelines/traffic"
)

func (s Service) router(minReady int32) (traffic.Router, error) {
	router, err := traffic.New(s.Config.Switch.Router, traffic.Settings{
		Client: s.Client, Namespace: s.Namespace, Service: s.Config.Service, MinReady: int(minReady),
	})
	if err != nil {
		return nil, usage(err)
	}
	return router, nil
}

// route moves all traffic to the colour at once, without waiting for the data path: the way back must not depend on being
// able to watch.
func (r *run) route(ctx context.Context, colour string) error {
	router, err := r.router(1)
	if err != nil {
		return err
	}
	return router.Shift(ctx, traffic.Weights{colour: 100, deploy.Other(colour): 0})
}

// switchTraffic moves the live traffic to the candidate and returns when the data path shows it.
func (r *run) switchTraffic(ctx context.Context) (result, error) {
	started := time.Now()
	r.report.Switch = &report.Switch{Router: r.Config.Switch.Router}
	if r.entry.Previous == "" {
		return r.openTraffic(ctx, started)
	}
	router, err := r.router(r.Config.Replicas)
	if err != nil {
		return result{}, err
	}
	if r.watch, err = r.startWatch(ctx, r.watchLimit()); err != nil {
		return result{}, err
	}
	moved, err := traffic.Run(ctx, traffic.Options{
		Router: router, Observer: trafficObserver{r.watch}, Log: r.Progress,
		From: r.entry.Previous, To: r.entry.Candidate, Timeout: r.Config.Switch.Timeout.Std(),
	})
	r.report.Switch.Requests, r.report.Switch.Failed, r.report.Switch.Seconds = moved.Requests, moved.Failed, moved.Seconds
	if errors.Is(err, traffic.ErrUnconfirmed) {
		return result{}, rejected(err)
	}
	if err != nil {
		return result{}, err
	}
	return result{detail: fmt.Sprintf("%s to %s: all new connections after %.2f s, %d requests, %d failed",
		moved.From, moved.To, moved.Seconds, moved.Requests, moved.Failed)}, nil
}

// openTraffic creates the live Service, on the first release of a service.
func (r *run) openTraffic(ctx context.Context, started time.Time) (result, error) {
	if _, err := deploy.EnsureLiveService(ctx, r.colour(r.entry.Candidate)); err != nil {
		return result{}, err
	}
	var err error
	if r.watch, err = r.startWatch(ctx, r.watchLimit()); err != nil {
		return result{}, err
	}
	r.report.Switch.Seconds = time.Since(started).Seconds()
	return result{detail: "live Service created on " + r.entry.Candidate}, nil
}

// watchLimit is how long the watch may have to run.
func (r *run) watchLimit() time.Duration {
	return r.Config.Switch.Timeout.Std() + r.Config.Bake.Duration.Std() + leeway
}

// bake watches the candidate, which is live now.
func (r *run) bake(ctx context.Context) (result, error) {
	watched, err := observe.Run(ctx, observe.Options{
		Client: r.Client, Observer: bakeObserver{r.watch}, Log: r.Progress,
		Namespace: r.Namespace, Service: r.Config.Service, Colour: r.entry.Candidate,
		Duration: r.Config.Bake.Duration.Std(), MaxFailed: float64(r.Config.Bake.MaxFailed),
	})
	if errors.Is(err, observe.ErrUnhealthy) {
		return result{}, rejected(err)
	}
	if err != nil {
		return result{}, err
	}
	detail := fmt.Sprintf("%.0f s, %d requests, %d failed, %d restarts", watched.Seconds, watched.Requests, watched.Failed, watched.Restarts)
	// The probe's own account is complete, the events that came on the way may not be.
	if all, err := r.watch.stop(ctx); err == nil {
		r.report.Switch.Requests, r.report.Switch.Failed = all.Requests, all.Failed
	} else {
		// A lost last line is no reason to take back a version that has just been found good.
		last := r.watch.last()
		r.report.Switch.Requests, r.report.Switch.Failed = last.Requests, last.Failed
	}
	return result{detail: detail}, nil
}

// teardown takes the previous colour's pods and GPUs away, after keep.warm. What its Deployment says is kept, cold.
func (r *run) teardown(ctx context.Context) (result, error) {
	if r.entry.Previous == "" {
		return result{detail: "nothing was live before", skipped: true}, nil
	}
	if warm := r.Config.Keep.Warm.Std(); warm > 0 {
		r.say("%s stays warm for %s", r.entry.Previous, warm)
		select {
		case <-time.After(warm):
		case <-ctx.Done():
			return result{}, context.Cause(ctx)
		}
	}
	if err := r.scaleToZero(ctx, r.entry.Previous); err != nil {
		return result{}, err
	}
	return result{detail: fmt.Sprintf("%s is at zero, kept cold for %s", r.entry.Previous, r.Config.Keep.Cold.Std())}, nil
}
