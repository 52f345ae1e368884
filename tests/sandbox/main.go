// Command sandbox brings up everything that a real release needs on a bare Linux machine with root, and takes it down
// again: a container registry, a Dagger engine, a Kubernetes cluster, base images and a vulnerability database. README.md
// beside it lists what it changes on the host.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/greenlight-ci/greenlight/tests/sandbox/registry"
)

const usage = `usage: go run ./tests/sandbox <command>

  up      build what is missing and start what does not run; safe to repeat
  build   build only: nothing is started, so that an image or a CI cache can be prepared
  status  one line for each component
  env     shell lines that point dagger, kubectl and the tests at the sandbox: eval "$(go run ./tests/sandbox env)"
  down    stop everything and undo what up changed on the host; builds stay for the next time
          --cache     remove the builds as well
          --packages  remove the Debian packages that up installed as well
`

func main() {
	// The first signal ends what is being done in order, a second one ends the program.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	go func() {
		<-ctx.Done()
		stop()
	}()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is main with everything passed in. It returns the exit code: 0 done, 1 failed, 2 usage.
func run(ctx context.Context, args []string, out, log io.Writer) int {
	if len(args) == 0 {
		_, _ = fmt.Fprint(log, usage)
		return 2
	}
	var err error
	switch command, rest := args[0], args[1:]; {
	case command == registry.ServeCommand:
		err = registry.Serve(ctx, rest)
	case command == "down":
		var what removal
		if what, err = parseRemoval(rest); err == nil {
			err = down(ctx, what, log)
		}
	case len(rest) > 0:
		err = fmt.Errorf("%w: %s takes no arguments", errUsage, command)
	case command == "up":
		err = up(ctx, log, false)
	case command == "build":
		err = up(ctx, log, true)
	case command == "status":
		err = status(ctx, out)
	case command == "env":
		err = printEnvironment(out)
	default:
		err = fmt.Errorf("%w: no command %q", errUsage, command)
	}
	switch {
	case errors.Is(err, errUsage):
		_, _ = fmt.Fprintf(log, "sandbox: %v\n\n%s", err, usage)
		return 2
	case err != nil:
		_, _ = fmt.Fprintf(log, "sandbox: %v\n", err)
		return 1
	}
	return 0
}

var errUsage = errors.New("usage")
