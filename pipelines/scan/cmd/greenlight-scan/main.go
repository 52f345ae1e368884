// Command greenlight-scan looks for known vulnerabilities in a container image and writes what it found as scan.json,
// trivy.json, scan.sarif and sbom.cdx.json. It exits 0 when the scan ran, whatever it found; 1 when it failed; 2 for
// wrong usage.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/greenlight-ci/greenlight/pipelines/scan"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := execute(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	command := newCommand()
	command.SetArgs(args)
	command.SetOut(stdout)
	command.SetErr(stderr)
	err := command.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintf(stderr, "greenlight-scan: %v\n", err)
	if errors.Is(err, scan.ErrOptions) || errors.As(err, &usageError{}) {
		return 2
	}
	return 1
}

// usageError is an error about flags and arguments.
type usageError struct{ error }

func newCommand() *cobra.Command {
	var o scan.Options
	command := &cobra.Command{
		Use:   "greenlight-scan REF --out DIR",
		Short: "Look for known vulnerabilities in a container image",
		Long: "Look for known vulnerabilities in the OS and language packages of a container image.\n\n" +
			"REF is name@sha256:… or name:tag. Writes scan.json (the report that the scan gate judges), trivy.json,\n" +
			"scan.sarif and sbom.cdx.json to DIR. Exits 0 when the scan ran, 1 when it failed, 2 for wrong usage.",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{fmt.Errorf("one image reference is expected, not %d arguments; see --help", len(args))}
			}
			return nil
		},
		RunE: func(command *cobra.Command, args []string) error {
			o.Reference = args[0]
			o.Log = command.ErrOrStderr()
			report, err := scan.Run(command.Context(), o)
			if err == nil {
				fmt.Fprintln(command.OutOrStdout(), report)
			}
			return err
		},
	}
	command.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	flags := command.Flags()
	flags.StringVar(&o.OutputDir, "out", "", "directory for the reports (required)")
	flags.StringVar(&o.CacheDir, "cache-dir", "", "directory for the vulnerability database and analysed layers (default: greenlight/trivy in the user's cache)")
	flags.StringArrayVar(&o.DatabaseRepositories, "db-repository", nil, "repository of the vulnerability database; may be repeated (default: Trivy's own)")
	flags.StringArrayVar(&o.JavaDatabaseRepositories, "java-db-repository", nil, "repository of the Java database, needed for images with JARs; may be repeated (default: Trivy's own)")
	flags.BoolVar(&o.SkipDatabaseUpdate, "skip-db-update", false, "use the database in the cache directory as it is")
	flags.DurationVar(&o.MaxDatabaseAge, "max-db-age", 7*24*time.Hour, "refuse a vulnerability database that is older")
	flags.BoolVar(&o.AllowOldDatabase, "allow-old-db", false, "scan with a vulnerability database of any age")
	flags.StringSliceVar(&o.Severities, "severity", nil, "severities to report, such as CRITICAL,HIGH (default: all)")
	flags.BoolVar(&o.IgnoreUnfixed, "ignore-unfixed", false, "leave findings without a fixed version out")
	flags.StringVar(&o.IgnoreFile, "ignorefile", "", ".trivyignore or .trivyignore.yaml file")
	flags.StringArrayVar(&o.SkipFiles, "skip-files", nil, "glob of paths in the image to leave out; may be repeated")
	flags.StringVar(&o.Platform, "platform", "", "os/arch of the image to take from an index (default: linux/amd64)")
	flags.BoolVar(&o.Insecure, "insecure", false, "allow plain HTTP and unverified certificates for any registry (localhost names need no flag)")
	flags.StringVar(&o.DockerConfig, "docker-config", "", "Docker config file with registry credentials (default: that of the docker command)")
	flags.DurationVar(&o.Timeout, "timeout", 15*time.Minute, "end the scan after this time")
	flags.IntVar(&o.Attempts, "attempts", 3, "how often to begin a download that breaks off")
	flags.BoolVar(&o.Verbose, "verbose", false, "show Trivy's own log")
	return command
}
