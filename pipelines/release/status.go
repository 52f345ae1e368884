package release

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/greenlight-ci/greenlight/pipelines/deploy"
)

// Status is what the cluster has of a service.
type Status struct {
	deploy.State
	// Newest is the newest release by the journal; null where there was none.
	Newest *Entry `json:"newest"`
}

// ReadStatus reads the state of the service. It changes nothing and takes no lock.
func ReadStatus(ctx context.Context, s Service) (Status, error) {
	state, err := deploy.Colours(ctx, s.Client, s.Namespace, s.Config.Service)
	if err != nil {
		return Status{}, err
	}
	_, entry, err := OpenJournal(ctx, s.Client, s.Namespace, s.Config.Service)
	if err != nil {
		return Status{}, err
	}
	return Status{State: state, Newest: entry}, nil
}

// String is the status for a person.
func (s Status) String() string {
	var out strings.Builder
	for _, name := range []string{deploy.Blue, deploy.Green} {
		c := s.Colours[name]
		role := "empty"
		switch {
		case c.Live:
			role = "live"
		case c.Exists && c.Replicas > 0:
			role = "warm"
		case c.Exists:
			role = "cold"
		}
		fmt.Fprintf(&out, "%-5s  %-5s  %d/%d ready  %s  %s\n", name, role, c.Ready, c.Replicas, c.Version, c.Image)
	}
	if s.Newest != nil {
		fmt.Fprintf(&out, "newest release %s of %s: %s", s.Newest.ID, s.Newest.Version, s.Newest.Phase)
		if s.Newest.Status != "" {
			fmt.Fprintf(&out, ", %s", s.Newest.Status)
		}
		if s.Newest.Reason != "" {
			fmt.Fprintf(&out, " (%s)", s.Newest.Reason)
		}
		fmt.Fprintln(&out)
	}
	return out.String()
}

// Prune deletes the version that is kept cold once the config's keep.cold has passed since the newest release ended, and says
// what it did.
func Prune(ctx context.Context, s Service) (string, error) {
	r := newRun(Options{Service: s, ID: "prune"})
	detail := ""
	err := r.locked(ctx, func(ctx context.Context) error {
		state, err := deploy.Colours(ctx, s.Client, s.Namespace, s.Config.Service)
		if err != nil {
			return err
		}
		colour := state.Candidate()
		kept := state.Colours[colour]
		_, newest, err := OpenJournal(ctx, s.Client, s.Namespace, s.Config.Service)
		if err != nil {
			return err
		}
		switch {
		case !kept.Exists:
			detail = "nothing is kept"
			return nil
		case newest == nil:
			detail = fmt.Sprintf("%s (%s) stays: no release is on record, so its age is not known", colour, kept.Version)
			return nil
		}
		if left := s.Config.Keep.Cold.Std() - time.Since(newest.endedAt()); left > 0 {
			detail = fmt.Sprintf("%s (%s) stays for another %s", colour, kept.Version, left.Round(time.Second))
			return nil
		}
		if err := deploy.Delete(ctx, s.target(colour, compensationTimeout)); err != nil {
			return err
		}
		detail = fmt.Sprintf("deleted %s (%s)", colour, kept.Version)
		return nil
	})
	return detail, err
}

// endedAt is when the release's last step had its outcome, or began.
func (e *Entry) endedAt() time.Time {
	ended := e.StartedAt
	for _, step := range e.Steps {
		ended = step.IntentAt
		if step.OutcomeAt != nil {
			ended = *step.OutcomeAt
		}
	}
	return ended
}
