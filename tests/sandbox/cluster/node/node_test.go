package main

import (
	"io"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/greenlight-ci/greenlight/tests/sandbox/cluster/plan"
)

func TestV1Cgroups(t *testing.T) {
	const mountinfo = `24 1 254:0 / / rw - ext4 /dev/vda rw
30 24 0:25 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755
31 30 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
32 30 0:27 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
33 30 0:28 /docker/abc /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
34 30 0:29 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
35 30 0:30 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw`
	tests := []struct {
		name, own string
		want      []cgroup
		problem   bool
	}{
		{"roots", "3:cpu,cpuacct:/\n2:memory:/\n0::/\n", []cgroup{
			{"cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct/n"}, {"memory", "/sys/fs/cgroup/memory/n"},
		}, false},
		{"below", "2:memory:/a/b\n1:name=systemd:/\n", []cgroup{
			{"memory", "/sys/fs/cgroup/memory/a/b/n"}, {"name=systemd", "/sys/fs/cgroup/systemd/n"},
		}, false},
		{"a part is mounted", "4:pids:/docker/abc/x\n", []cgroup{{"pids", "/sys/fs/cgroup/pids/x/n"}}, false},
		{"outside of what is mounted", "4:pids:/elsewhere\n", []cgroup{{"pids", "/sys/fs/cgroup/pids/n"}}, false},
		{"not mounted", "5:freezer:/\n", nil, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := v1Cgroups(test.own, mountinfo, "n")
			if test.problem {
				require.Error(t, err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, test.want, got)
		})
	}
}

func TestForward(t *testing.T) {
	target, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = target.Close() }()
	go func() {
		for {
			connection, err := target.Accept()
			if err != nil {
				return
			}
			// Answers only when the other side has said all: this shows that half-closing is passed on.
			said, _ := io.ReadAll(connection)
			_, _ = connection.Write(append([]byte("you said "), said...))
			_ = connection.Close()
		}
	}()
	tests := []struct{ name, from, want string }{
		{"anybody", "", "you said hello"},
		{"the named", "127.0.0.0/8", "you said hello"},
		{"others", "10.76.0.0/15", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			free, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			address := free.Addr().String()
			require.NoError(t, free.Close())
			require.NoError(t, forward(plan.Forward{Listen: address, Target: target.Addr().String(), From: test.from}))
			require.Error(t, forward(plan.Forward{Listen: address}), "the address is taken")
			connection, err := net.Dial("tcp", address)
			require.NoError(t, err)
			defer func() { _ = connection.Close() }()
			_, _ = connection.Write([]byte("hello"))
			_ = connection.(*net.TCPConn).CloseWrite() // fails where the connection is closed already
			got, _ := io.ReadAll(connection)
			require.Equal(t, test.want, string(got))
		})
	}
}

func TestAnswers(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = listener.Close() }()
	client := &http.Client{Timeout: time.Second}
	require.True(t, answers(client, "tcp", listener.Addr().String()))
	require.False(t, answers(client, "unix", t.TempDir()+"/none"))
	require.False(t, answers(client, "https", "//"+listener.Addr().String()+"/readyz"))
}

func TestStartTime(t *testing.T) {
	require.NotZero(t, startTime(os.Getpid()))
	require.Zero(t, startTime(-1))
}
