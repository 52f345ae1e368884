package main

import (
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/greenlight-ci/greenlight/manifests"
	"github.com/greenlight-ci/greenlight/pipelines/release"
	"github.com/greenlight-ci/greenlight/pipelines/sign"
)

func newStatusCommand(o *options) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what serves, what is kept, and the newest release",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			service, err := o.service(cmd)
			if err != nil {
				return err
			}
			status, err := release.ReadStatus(cmd.Context(), service)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), status)
			}
			fmt.Fprint(cmd.OutOrStdout(), status)
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newPruneCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "prune",
		Short: "Delete the previous version once keep.cold has passed",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			service, err := o.service(cmd)
			if err != nil {
				return err
			}
			detail, err := release.Prune(cmd.Context(), service)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), detail)
			return nil
		},
	}
}

func newSignCommand(o *options) *cobra.Command {
	var reference string
	cmd := &cobra.Command{
		Use:   "sign",
		Short: "Sign an image with a cosign key pair",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			result, err := sign.Run(cmd.Context(), sign.Options{Reference: reference, Key: o.key(), Registry: o.registry()})
			if err != nil {
				return err
			}
			return printJSON(cmd.OutOrStdout(), result)
		},
	}
	cmd.Flags().StringVar(&reference, "image", "", "the image `reference`, by digest")
	return cmd
}

func newVerifyCommand(o *options) *cobra.Command {
	var reference string
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Verify that an image is signed with --verify-key",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.verifyKey == "" {
				return fmt.Errorf("%w: --verify-key is missing", release.ErrUsage)
			}
			result, err := sign.Verify(cmd.Context(), sign.VerifyOptions{
				Reference: reference, Key: sign.PublicKey{File: o.verifyKey}, Registry: o.registry(),
			})
			if err != nil {
				return err
			}
			return printJSON(cmd.OutOrStdout(), result)
		},
	}
	cmd.Flags().StringVar(&reference, "image", "", "the image `reference`, by digest")
	return cmd
}

func newKeysCommand(o *options) *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "Write a new cosign key pair, cosign.key and cosign.pub",
		Long:  "Keys writes a new key pair. The private key is encrypted with the password in --signing-password-file or $COSIGN_PASSWORD.",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			password := []byte(os.Getenv("COSIGN_PASSWORD"))
			if o.passwordFile != "" {
				data, err := os.ReadFile(o.passwordFile)
				if err != nil {
					return fmt.Errorf("%w: --signing-password-file: %w", release.ErrUsage, err)
				}
				password = []byte(strings.TrimRight(string(data), "\r\n"))
			}
			if err := sign.GenerateKeyPair(dir, password); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "wrote %s and %s; keep the first secret, commit the second\n", sign.PrivateKeyFile, sign.PublicKeyFile)
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "dir", ".", "`directory` to write to")
	return cmd
}

func newRBACCommand(o *options) *cobra.Command {
	var account string
	var secrets []string
	cmd := &cobra.Command{
		Use:   "rbac",
		Short: "Print the ServiceAccount, Role and bindings that a release needs",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.loadConfig()
			if err != nil {
				return err
			}
			namespace := c.Namespace
			if namespace == "" {
				namespace = "default"
			}
			text, err := manifests.RenderRBAC(manifests.Permissions{Namespace: namespace, Account: account, Secrets: secrets})
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(text)
			return err
		},
	}
	cmd.Flags().StringVar(&account, "account", "greenlight", "`name` of the ServiceAccount")
	cmd.Flags().StringSliceVar(&secrets, "secret", nil, "`name` of a Secret that the pods use, for preflight to check")
	return cmd
}

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of greenlight and of its toolchain",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			info, ok := debug.ReadBuildInfo()
			if !ok {
				return fmt.Errorf("this binary has no build information")
			}
			fmt.Fprintf(cmd.OutOrStdout(), "greenlight %s, %s\n", info.Main.Version, info.GoVersion)
			return nil
		},
	}
}
