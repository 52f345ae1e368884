package main

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestExitCodes(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct {
		args    []string
		code    int
		message string
	}{
		"help":          {[]string{"--help"}, 0, ""},
		"nothing":       {nil, 2, "one image reference is expected"},
		"two":           {[]string{"a", "b"}, 2, "one image reference is expected"},
		"unknown flag":  {[]string{"a", "--nonsense"}, 2, "unknown flag: --nonsense"},
		"no directory":  {[]string{"127.0.0.1:1/demo:v1"}, 2, "no output directory"},
		"severity":      {[]string{"127.0.0.1:1/demo:v1", "--out", dir, "--severity", "BAD"}, 2, `severity "BAD" is unknown`},
		"bad duration":  {[]string{"127.0.0.1:1/demo:v1", "--out", dir, "--timeout", "soon"}, 2, "invalid argument"},
		"no tag":        {[]string{"127.0.0.1:1/demo", "--out", dir, "--cache-dir", dir}, 2, "neither tag nor digest"},
		"nobody there":  {[]string{"127.0.0.1:1/demo:v1", "--out", dir, "--cache-dir", dir, "--attempts", "1"}, 1, "cannot be reached"},
		"no such image": {[]string{"registry.invalid/demo:v1", "--out", dir, "--cache-dir", dir, "--attempts", "1"}, 1, "registry.invalid"},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			require.Equal(t, c.code, execute(t.Context(), c.args, &stdout, &stderr))
			require.Contains(t, stderr.String(), c.message)
			if c.code != 0 {
				require.Equal(t, 1, bytes.Count(stderr.Bytes(), []byte("\n")), stderr.String())
			}
		})
	}
}
