package main

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/greenlight-ci/greenlight/pipelines/release"
	"github.com/greenlight-ci/greenlight/pipelines/report"
)

func newConfigCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "config",
		Short: "Check the config and print it, with every default, as JSON",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.loadConfig()
			if err != nil {
				return err
			}
			return printJSON(cmd.OutOrStdout(), c)
		},
	}
}

func newPreflightCommand(o *options) *cobra.Command {
	var version string
	cmd := &cobra.Command{
		Use:   "preflight",
		Short: "Check all that a release needs, without changing anything",
		Long:  "Preflight checks the config, the keys, the cluster, the permissions, the lock, and that the candidate's pods can be scheduled.",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			service, err := o.service(cmd)
			if err != nil {
				return err
			}
			detail, err := release.Preflight(cmd.Context(), service, release.Artifact{
				Version: version, SigningKey: o.key(), PublicKey: o.publicKey(service.Config),
			})
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), detail)
			return nil
		},
	}
	cmd.Flags().StringVar(&version, "version", "", "the `version` to be released, such as v1.4.0-3f2a1c9")
	return cmd
}

func newReleaseCommand(o *options) *cobra.Command {
	var artifact release.Artifact
	var probeImage, out string
	cmd := &cobra.Command{
		Use:   "release",
		Short: "Release an image that is in the registry",
		Long: "Release runs the plan: preflight, build (what was built is checked), scan, sign, verify, deploy, smoke, warmup, latency,\n" +
			"switch, bake, teardown. The report goes to --out, however the release ends.",
		Example: "  greenlight release --version v1.4.0-3f2a1c9 --image registry.example.com/team/digits@sha256:… \\\n" +
			"    --probe-image registry.example.com/team/digits-probe@sha256:… --scan-dir out/scan --signing-key cosign.key",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			service, err := o.service(cmd)
			if err != nil {
				return err
			}
			artifact.SigningKey, artifact.PublicKey = o.key(), o.publicKey(service.Config)
			id, err := newID(time.Now())
			if err != nil {
				return err
			}
			result, err := release.Run(cmd.Context(), release.Options{Service: service, Artifact: artifact, ID: id, ProbeImage: probeImage})
			return finish(cmd, result, out, err)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&artifact.Version, "version", "", "the `version` to release, such as v1.4.0-3f2a1c9")
	flags.StringVar(&artifact.Image, "image", "", "the image `reference`, by digest")
	flags.StringVar(&artifact.ScanDir, "scan-dir", "", "`directory` that greenlight-scan wrote")
	flags.StringVar(&artifact.BuildRecord, "build-record", "", "build.json of the build, for the report")
	flags.StringVar(&probeImage, "probe-image", "", "the image `reference` of greenlight-probe, by digest")
	flags.StringVar(&out, "out", "", "`directory` for report.json, report.md and report.html (default: not written)")
	return cmd
}

func newRollbackCommand(o *options) *cobra.Command {
	var probeImage, out string
	cmd := &cobra.Command{
		Use:   "rollback",
		Short: "Move the traffic back to the previous version",
		Long: "Rollback brings the previous colour back, from warm or cold, waits until it is ready, and moves the traffic to it.\n" +
			"After a release that was killed, it first restores what that release had left.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			service, err := o.service(cmd)
			if err != nil {
				return err
			}
			id, err := newID(time.Now())
			if err != nil {
				return err
			}
			result, err := release.Rollback(cmd.Context(), release.Options{
				Service: service, ID: id, ProbeImage: probeImage, Artifact: release.Artifact{PublicKey: o.publicKey(service.Config)},
			})
			return finish(cmd, result, out, err)
		},
	}
	cmd.Flags().StringVar(&probeImage, "probe-image", "", "the image `reference` of greenlight-probe, by digest")
	cmd.Flags().StringVar(&out, "out", "", "`directory` for the report (default: not written)")
	return cmd
}

// finish writes the report, prints its summary, and returns the release's error.
func finish(cmd *cobra.Command, result *report.Report, out string, err error) error {
	if result == nil {
		return err
	}
	if out != "" {
		if writeErr := result.Write(out); writeErr != nil && err == nil {
			return writeErr
		}
	}
	text, markdownErr := result.Markdown()
	if markdownErr != nil {
		return markdownErr
	}
	fmt.Fprint(cmd.OutOrStdout(), string(text))
	return err
}

func printJSON(w io.Writer, v any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(v)
}
