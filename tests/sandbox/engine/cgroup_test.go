package engine

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestHierarchies(t *testing.T) {
	tests := map[string]struct {
		groups, mounts string
		want           []hierarchy
	}{
		"version 2": {
			groups: "0::/user.slice/session-1.scope\n",
			mounts: "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n",
			want:   []hierarchy{{Mount: "/sys/fs/cgroup", Own: "/sys/fs/cgroup/user.slice/session-1.scope"}},
		},
		"both": {
			groups: "4:memory:/a\n2:cpu,cpuacct:/\n1:name=systemd:/\n0::/\n",
			mounts: `24 1 254:0 / / rw - ext4 /dev/vda rw
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/memory rw shared:7 - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
34 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
`,
			want: []hierarchy{
				{Options: "memory", Mount: "/sys/fs/cgroup/memory", Own: "/sys/fs/cgroup/memory/a"},
				{Options: "cpu,cpuacct", Mount: "/sys/fs/cgroup/cpu,cpuacct", Own: "/sys/fs/cgroup/cpu,cpuacct"},
				{Options: "none,name=systemd", Mount: "/sys/fs/cgroup/systemd", Own: "/sys/fs/cgroup/systemd"},
				{Mount: "/sys/fs/cgroup/unified", Own: "/sys/fs/cgroup/unified"},
			},
		},
		"a container's part of the tree": {
			groups: "3:memory:/docker/abc/inner\n",
			mounts: "32 30 0:28 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
			want:   []hierarchy{{Options: "memory", Mount: "/sys/fs/cgroup/memory", Own: "/sys/fs/cgroup/memory/inner"}},
		},
		"a namespace's root": {
			groups: "0::/\n",
			mounts: "32 30 0:28 /../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
			want:   []hierarchy{{Mount: "/sys/fs/cgroup", Own: "/sys/fs/cgroup"}},
		},
		"not mounted": {
			groups: "5:misc:/\n0::/\n",
			mounts: "24 1 254:0 / / rw - ext4 /dev/vda rw\n",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, test.want, hierarchies(test.groups, test.mounts))
		})
	}
}

func TestGroupLines(t *testing.T) {
	trees := []hierarchy{{Options: "none,name=systemd", Mount: "/c/systemd"}, {Mount: "/c/unified"}}
	got := groupLines(trees, []string{"/c/systemd/x", "/c/unified/x"})
	require.Equal(t, "none,name=systemd\t/c/systemd\t/c/systemd/x\nv2\t/c/unified\t/c/unified/x", got)
}
