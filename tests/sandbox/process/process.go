// Package process starts the sandbox's long-running processes and ends them again, each by its own pid file.
package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A Daemon is a process that outlives the one that starts it. Its pid file holds the pid and the kernel's start time of
// that pid, so that a pid which was reused by somebody else is never signalled.
type Daemon struct {
	// Name names the pid and log files: <Dir>/<Name>.pid and <Dir>/<Name>.log.
	Name string
	// Dir holds the pid file and the log.
	Dir string
	// Grace is how long Stop waits after SIGTERM before SIGKILL. Default 10 s.
	Grace time.Duration
}

// Start runs cmd in a session of its own with its output in the log, and records its pid. cmd's Stdout, Stderr and
// Stdin are replaced. It is an error to start a daemon that runs.
func (d Daemon) Start(cmd *exec.Cmd) error {
	if pid, ok := d.Running(); ok {
		return fmt.Errorf("starting %s: it runs already with pid %d", d.Name, pid)
	}
	if err := os.MkdirAll(d.Dir, 0o755); err != nil {
		return fmt.Errorf("starting %s: %w", d.Name, err)
	}
	log, err := os.OpenFile(d.LogPath(), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("starting %s: %w", d.Name, err)
	}
	defer log.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = nil, log, log
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid = true
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", d.Name, err)
	}
	_, started, err := stat(cmd.Process.Pid)
	if err != nil {
		return fmt.Errorf("starting %s: it ended at once: %s", d.Name, d.LogTail(3))
	}
	line := fmt.Sprintf("%d %d\n", cmd.Process.Pid, started)
	if err := os.WriteFile(d.pidPath(), []byte(line), 0o644); err != nil {
		_ = cmd.Process.Kill()
		return fmt.Errorf("recording the pid of %s: %w", d.Name, err)
	}
	// Reaps the child if it ends while this process still lives.
	go func() { _ = cmd.Wait() }()
	return nil
}

// Running returns the pid and true if the recorded process lives. A zombie is dead.
func (d Daemon) Running() (int, bool) {
	data, err := os.ReadFile(d.pidPath())
	if err != nil {
		return 0, false
	}
	fields := strings.Fields(string(data))
	if len(fields) != 2 {
		return 0, false
	}
	pid, err1 := strconv.Atoi(fields[0])
	want, err2 := strconv.ParseUint(fields[1], 10, 64)
	if err1 != nil || err2 != nil || pid <= 1 {
		return 0, false
	}
	state, started, err := stat(pid)
	if err != nil || started != want || state == 'Z' || state == 'X' {
		return 0, false
	}
	return pid, true
}

// Stop ends the recorded process, with SIGTERM first and SIGKILL after the grace period, and removes the pid file. It is
// no error if it does not run.
func (d Daemon) Stop(ctx context.Context) error {
	pid, ok := d.Running()
	if ok {
		grace := d.Grace
		if grace == 0 {
			grace = 10 * time.Second
		}
		_ = syscall.Kill(pid, syscall.SIGTERM)
		if !d.gone(ctx, grace) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			if !d.gone(ctx, 10*time.Second) {
				return fmt.Errorf("stopping %s: pid %d does not end", d.Name, pid)
			}
		}
	}
	if err := os.Remove(d.pidPath()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("stopping %s: %w", d.Name, err)
	}
	return nil
}

func (d Daemon) gone(ctx context.Context, limit time.Duration) bool {
	deadline := time.Now().Add(limit)
	for time.Now().Before(deadline) {
		if _, ok := d.Running(); !ok {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(50 * time.Millisecond):
		}
	}
	_, ok := d.Running()
	return !ok
}

// LogPath is the file that holds the daemon's output since its last start.
func (d Daemon) LogPath() string { return filepath.Join(d.Dir, d.Name+".log") }

// LogTail returns the last n lines of the log, for error messages.
func (d Daemon) LogTail(n int) string {
	data, err := os.ReadFile(d.LogPath())
	if err != nil {
		return "no log: " + err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, " | ")
}

func (d Daemon) pidPath() string { return filepath.Join(d.Dir, d.Name+".pid") }

// stat reads state and start time (clock ticks since boot) from /proc/<pid>/stat; the command name in it may itself
// hold spaces and parentheses.
func stat(pid int) (state byte, started uint64, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	i := bytes.LastIndexByte(data, ')')
	fields := strings.Fields(string(data[i+1:]))
	if i < 0 || len(fields) < 20 {
		return 0, 0, fmt.Errorf("unexpected /proc/%d/stat", pid)
	}
	started, err = strconv.ParseUint(fields[19], 10, 64)
	return fields[0][0], started, err
}
