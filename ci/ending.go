package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/vektah/gqlparser/v2/gqlerror"

	"dagger/greenlight/internal/dagger"
)

// The exit codes of greenlight that the module itself gives, and the last of them.
const (
	codeFailed = 1
	codeUsage  = 2
	codeLocked = 5
)

// ending is an end other than "released": a code and one line that says why.
type ending struct {
	code   int
	reason string
}

func (e *ending) Error() string { return e.reason }

// usage is an end because of what the caller passed. Nothing has been changed.
func usage(format string, args ...any) error {
	return &ending{code: codeUsage, reason: oneLine(fmt.Sprintf(format, args...))}
}

// endingOf turns any error into an end. Errors of the engine are failures.
func endingOf(err error) *ending {
	var end *ending
	if errors.As(err, &end) {
		return end
	}
	return &ending{code: codeFailed, reason: oneLine(explain(err))}
}

// explain adds what a failed command wrote last: the error of an exec says no more than its exit code.
func explain(err error) string {
	var exec *dagger.ExecError
	if !errors.As(err, &exec) {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(exec.Stderr), "\n")
	last := strings.TrimSpace(lines[len(lines)-1])
	if last == "" || strings.Contains(err.Error(), last) {
		return err.Error()
	}
	return err.Error() + ": " + last
}

// oneLine keeps a message on one line.
func oneLine(message string) string { return strings.Join(strings.Fields(message), " ") }

// exitWith is the error that makes `dagger call` print the reason and end with greenlight's exit code: the CLI takes the
// code of an exec error for its own.
func exitWith(err error) error {
	end := endingOf(err)
	return &gqlerror.Error{
		Message: end.reason,
		Extensions: map[string]any{
			"_type":    "EXEC_ERROR",
			"cmd":      []string{"greenlight"},
			"exitCode": end.code,
			"stdout":   "",
			"stderr":   "",
		},
	}
}
