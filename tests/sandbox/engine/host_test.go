package engine

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "host.json")
	got, err := readJournal(path)
	require.NoError(t, err)
	require.Nil(t, got, "no journal, nothing to undo")

	want := &journal{
		Key: "k", Network: "glengine", Subnet: netip.MustParsePrefix("10.93.0.0/16"), Forwarding: "0\n",
		Rules: map[string]string{"iptables-nft": "*filter\nCOMMIT\n"}, Groups: []string{"/sys/fs/cgroup/x"},
	}
	require.NoError(t, want.write(path))
	got, err = readJournal(path)
	require.NoError(t, err)
	require.Equal(t, want, got)

	entries, err := os.ReadDir(filepath.Dir(path))
	require.NoError(t, err)
	require.Len(t, entries, 1, "no temporary file stays")

	require.NoError(t, os.WriteFile(path, []byte("{"), 0o644))
	_, err = readJournal(path)
	require.ErrorContains(t, err, path)
}

func TestDownWithoutUp(t *testing.T) {
	root := t.TempDir()
	t.Setenv("GREENLIGHT_SANDBOX_CACHE", root)
	require.NoError(t, Down(t.Context(), nil))
	entries, err := os.ReadDir(root)
	require.NoError(t, err)
	require.Empty(t, entries)
}
