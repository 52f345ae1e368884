package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/greenlight-ci/greenlight/pipelines/cluster"
	"github.com/greenlight-ci/greenlight/pipelines/config"
	"github.com/greenlight-ci/greenlight/pipelines/release"
	"github.com/greenlight-ci/greenlight/pipelines/sign"
)

func TestExitCodes(t *testing.T) {
	wrap := func(errs ...error) error { return fmt.Errorf("stage: %w", errors.Join(errs...)) }
	cases := map[string]struct {
		err  error
		code int
	}{
		"done":                                  {nil, 0},
		"failed":                                {errors.New("API server gone"), 1},
		"config":                                {wrap(config.ErrInvalid), 2},
		"kubeconfig":                            {wrap(cluster.ErrConfig), 2},
		"usage":                                 {wrap(release.ErrUsage), 2},
		"key":                                   {wrap(sign.ErrKey), 2},
		"rejected":                              {wrap(release.ErrRejected), 3},
		"unverified":                            {wrap(sign.ErrUnverified), 3},
		"rolled back because a gate said no":    {wrap(release.ErrRolledBack, release.ErrRejected), 4},
		"locked":                                {wrap(release.ErrLocked), 5},
		"the lock was lost while it was failed": {wrap(release.ErrLockLost), 1},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) { require.Equal(t, c.code, exitCode(c.err)) })
	}
}

func TestWhatTheUserGotWrongIsOneLineAndCode2(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "greenlight.yaml")
	require.NoError(t, os.WriteFile(good, []byte("service: a\nimage: {repository: r.example.com/a}\ndevice: cpu\n"), 0o600))
	broken := filepath.Join(dir, "kubeconfig")
	require.NoError(t, os.WriteFile(broken, []byte("apiVersion: v1\nkind: Config\n"), 0o600))
	cases := map[string]struct {
		args    []string
		message string
	}{
		"unknown flag":       {[]string{"status", "--colour"}, "--colour"},
		"missing config":     {[]string{"status", "--config", filepath.Join(dir, "none.yaml")}, "does not exist"},
		"missing kubeconfig": {[]string{"status", "--config", good, "--kubeconfig", filepath.Join(dir, "none")}, "none"},
		"empty kubeconfig":   {[]string{"status", "--config", good, "--kubeconfig", broken}, "context"},
		"sign without key":   {[]string{"sign", "--image", "r.example.com/a@sha256:" + zeros}, "key"},
		"sign a tag":         {[]string{"sign", "--image", "r.example.com/a:v1"}, "digest"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			code, _, message := execute(t, c.args...)
			require.Equal(t, 2, code)
			require.Contains(t, message, c.message)
			require.Equal(t, 1, bytes.Count([]byte(message), []byte("\n")), "one line: %q", message)
		})
	}
}

const zeros = "0000000000000000000000000000000000000000000000000000000000000000"

func TestConfigPrintsEveryDefault(t *testing.T) {
	file := filepath.Join(t.TempDir(), "greenlight.yaml")
	require.NoError(t, os.WriteFile(file, []byte("service: a\nimage: {repository: r.example.com/a}\ndevice: cpu\n"), 0o600))
	code, out, message := execute(t, "config", "--config", file)
	require.Zero(t, code, message)
	var printed map[string]any
	require.NoError(t, json.Unmarshal([]byte(out), &printed))
	require.Equal(t, "Dockerfile", printed["image"].(map[string]any)["dockerfile"])
	require.Equal(t, "24h0m0s", printed["keep"].(map[string]any)["cold"])
}

// execute is main without the process.
func execute(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, messages bytes.Buffer
	root := newRoot()
	root.SetOut(&out)
	root.SetErr(&messages)
	return runRoot(context.Background(), root, args), out.String(), messages.String()
}
