package engine

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

// command is one program to run to its end.
type command struct {
	Dir   string
	Env   []string // added to the environment of this process
	Stdin io.Reader
	Log   io.Writer // gets both output streams while the program runs
}

// run fails with the last lines of what the program said.
func (c command) run(ctx context.Context, name string, args ...string) error {
	tail := &tailWriter{limit: 2048}
	cmd := c.prepare(ctx, name, args...)
	out := io.MultiWriter(logTo(c.Log), tail)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, tail.lines(4))
	}
	return nil
}

// output returns standard output alone.
func (c command) output(ctx context.Context, name string, args ...string) ([]byte, error) {
	tail := &tailWriter{limit: 2048}
	cmd := c.prepare(ctx, name, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, tail
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", name, err, tail.lines(4))
	}
	return out.Bytes(), nil
}

func (c command) prepare(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stdin = c.Dir, c.Stdin
	if len(c.Env) > 0 {
		cmd.Env = append(os.Environ(), c.Env...)
	}
	return cmd
}

// tailWriter keeps the end of what is written to it.
type tailWriter struct {
	limit int
	data  []byte
}

func (t *tailWriter) Write(p []byte) (int, error) {
	t.data = append(t.data, p...)
	if extra := len(t.data) - t.limit; extra > 0 {
		t.data = t.data[extra:]
	}
	return len(p), nil
}

func (t *tailWriter) lines(n int) string {
	lines := strings.Split(strings.TrimSpace(string(t.data)), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, " | ")
}
