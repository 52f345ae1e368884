// Package protocol is what the probe in the cluster and the release outside it agree on: where the probe finds its files
// and how it marks the lines of its log that are meant for the release.
package protocol

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
)

const (
	// Dir is where the probe's files are mounted.
	Dir = "/etc/greenlight"
	// OptionsFile is the JSON of the subcommand's options.
	OptionsFile = Dir + "/options.json"
	// CasesDir holds the golden cases.
	CasesDir = Dir + "/cases"
	// ResultPrefix starts the one line that holds the JSON of the subcommand's result.
	ResultPrefix = "GREENLIGHT-RESULT "
	// EventPrefix starts a line that holds the JSON of one event while the subcommand runs.
	EventPrefix = "GREENLIGHT-EVENT "
	// MaxLine is the longest line in bytes that is written or read.
	MaxLine = 4 << 20
)

// Write writes value as one marked line in a single call, so that lines of several writers do not mix.
func Write(w io.Writer, prefix string, value any) error {
	encoded, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("encoding the %sline: %w", prefix, err)
	}
	if len(prefix)+len(encoded) > MaxLine {
		return fmt.Errorf("the %sline would be %d bytes long, more than %d", prefix, len(prefix)+len(encoded), MaxLine)
	}
	line := append([]byte(prefix), encoded...)
	if _, err := w.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("writing the %sline: %w", prefix, err)
	}
	return nil
}

// Cut returns what follows the prefix in a line.
func Cut(line []byte, prefix string) ([]byte, bool) {
	return bytes.CutPrefix(bytes.TrimRight(line, "\r\n"), []byte(prefix))
}
