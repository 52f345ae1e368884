package release

import (
	"context"
	"errors"
	"strings"
)

// How a release can end other than well. Run's error wraps one of these; what else it wraps says more.
var (
	// ErrRejected: a gate said no; live was not touched.
	ErrRejected = errors.New("rejected")
	// ErrRolledBack: traffic went to the candidate and came back.
	ErrRolledBack = errors.New("rolled back")
	// ErrUsage: what the caller passed cannot work; nothing was changed.
	ErrUsage = errors.New("usage")
	// ErrNothingToRollBack: there is no previous version to go back to.
	ErrNothingToRollBack = errors.New("nothing to roll back to")
)

// ending marks an error with how the release ended, without a second copy of that in the message.
type ending struct {
	kind  error
	cause error
}

func (e *ending) Error() string   { return e.cause.Error() }
func (e *ending) Unwrap() []error { return []error{e.kind, e.cause} }

func usage(err error) error { return &ending{kind: ErrUsage, cause: err} }

// interrupted says whether the error comes from the caller ending the release, and by what.
func interrupted(ctx context.Context) (string, bool) {
	cause := context.Cause(ctx)
	if cause == nil || errors.Is(cause, ErrLockLost) {
		return "", false
	}
	return cause.Error(), true
}

// oneLine keeps a message on one line of a reasonable length; candidates' answers are quoted in some.
func oneLine(err error) string {
	const most = 500
	line := strings.Join(strings.Fields(err.Error()), " ")
	if len(line) > most {
		line = strings.ToValidUTF8(line[:most], "") + "…"
	}
	return line
}
