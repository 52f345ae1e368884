// Command greenlight runs the stages of a release, all of them or one at a time.
//
// Exit codes: 0 done, 1 failed, 2 usage or config, 3 a gate said no (live untouched), 4 rolled back, 5 another release
// holds the lock.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"github.com/greenlight-ci/greenlight/pipelines/cluster"
	"github.com/greenlight-ci/greenlight/pipelines/config"
	"github.com/greenlight-ci/greenlight/pipelines/image"
	"github.com/greenlight-ci/greenlight/pipelines/release"
	"github.com/greenlight-ci/greenlight/pipelines/sign"
)

// The exit codes are a contract.
const (
	exitDone       = 0
	exitFailed     = 1
	exitUsage      = 2
	exitRejected   = 3
	exitRolledBack = 4
	exitLocked     = 5
)

func main() {
	// client-go logs on its own when the API server goes away; what matters of it is in our errors.
	klog.SetLogger(logr.Discard())
	// The first signal lets a release compensate; a second one, after stop, ends the process as usual.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	go func() {
		<-ctx.Done()
		stop()
	}()
	os.Exit(runRoot(ctx, newRoot(), os.Args[1:]))
}

// runRoot runs the command and returns the exit code.
func runRoot(ctx context.Context, root *cobra.Command, args []string) int {
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err != nil {
		// One line, whatever is quoted in it: front doors show the last one.
		fmt.Fprintln(root.ErrOrStderr(), "greenlight: "+strings.Join(strings.Fields(err.Error()), " "))
	}
	return exitCode(err)
}

func newRoot() *cobra.Command {
	o := &options{}
	root := &cobra.Command{
		Use:   "greenlight",
		Short: "Release GPU inference services blue/green",
		Long: "Greenlight deploys an image beside the version that serves, proves that it computes the right thing fast enough,\n" +
			"moves the traffic without losing a request, and takes the old version down.\n\n" +
			"Exit codes: 0 done, 1 failed, 2 usage or config, 3 a gate said no (live untouched), 4 rolled back,\n" +
			"5 another release holds the lock.",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return cmd.Help()
		},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w: %w; see %s --help", release.ErrUsage, err, cmd.CommandPath())
	})
	o.register(root.PersistentFlags())
	root.AddCommand(
		newConfigCommand(o), newPreflightCommand(o), newReleaseCommand(o), newRollbackCommand(o), newStatusCommand(o),
		newPruneCommand(o), newSignCommand(o), newVerifyCommand(o), newKeysCommand(o), newRBACCommand(o), newVersionCommand(),
	)
	return root
}

// exitCode maps errors to the contract. The order matters: a rollback also wraps what it was rolled back for.
func exitCode(err error) int {
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, release.ErrLocked):
		return exitLocked
	case errors.Is(err, release.ErrRolledBack):
		return exitRolledBack
	case errors.Is(err, release.ErrRejected), errors.Is(err, sign.ErrUnverified):
		return exitRejected
	case errors.Is(err, release.ErrUsage), errors.Is(err, config.ErrInvalid), errors.Is(err, cluster.ErrConfig),
		errors.Is(err, sign.ErrKey), errors.Is(err, image.ErrReference), errors.Is(err, image.ErrMutable):
		return exitUsage
	default:
		return exitFailed
	}
}
