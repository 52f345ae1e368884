package process

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestADaemonIsStartedOnceAndStopped(t *testing.T) {
	d := Daemon{Name: "sleeper", Dir: t.TempDir()}
	require.NoError(t, d.Start(exec.Command("sleep", "60")))
	pid, ok := d.Running()
	require.True(t, ok)
	require.ErrorContains(t, d.Start(exec.Command("sleep", "60")), strconv.Itoa(pid))
	require.NoError(t, d.Stop(t.Context()))
	_, ok = d.Running()
	require.False(t, ok)
	require.NoError(t, d.Stop(t.Context()), "stopping twice is no error")
}

func TestADaemonThatIgnoresSIGTERMIsKilled(t *testing.T) {
	dir := t.TempDir()
	d := Daemon{Name: "stubborn", Dir: dir, Grace: 200 * time.Millisecond}
	ready := filepath.Join(dir, "ready")
	require.NoError(t, d.Start(exec.Command("sh", "-c", `trap "" TERM; touch "$0"; while :; do sleep 0.05; done`, ready)))
	require.Eventually(t, func() bool { _, err := os.Stat(ready); return err == nil }, 10*time.Second, 10*time.Millisecond)
	require.NoError(t, d.Stop(t.Context()))
	_, ok := d.Running()
	require.False(t, ok)
}

func TestAPidThatSomebodyElseGotIsLeftAlone(t *testing.T) {
	other := exec.Command("sleep", "60")
	require.NoError(t, other.Start())
	defer func() {
		require.NoError(t, other.Process.Kill())
		_ = other.Wait()
	}()
	d := Daemon{Name: "gone", Dir: t.TempDir()}
	// The same pid with another start time: the daemon ended, and the number was given to another process.
	require.NoError(t, os.WriteFile(d.pidPath(), []byte(strconv.Itoa(other.Process.Pid)+" 1\n"), 0o600))
	_, ok := d.Running()
	require.False(t, ok)
	require.NoError(t, d.Stop(t.Context()))
	require.NoError(t, other.Process.Signal(syscall.Signal(0)), "it was signalled")
}

func TestAMalformedPidFileIsNobody(t *testing.T) {
	for _, content := range []string{"", "x y\n", "1 1\n", "-5 3\n", "12\n"} {
		d := Daemon{Name: "odd", Dir: t.TempDir()}
		require.NoError(t, os.WriteFile(d.pidPath(), []byte(content), 0o600))
		_, ok := d.Running()
		require.False(t, ok, "%q", content)
	}
}
