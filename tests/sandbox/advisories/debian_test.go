package advisories

import (
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const changelog = `openssl (3.0.15-1~deb12u1) bookworm; urgency=medium

  * New upstream release
    - CVE-2024-5535 (SSL_select_next_proto buffer overread)
    - A second patch for CVE-2024-4741.

 -- Somebody <somebody@example.com>  Sun, 01 Sep 2024 10:00:00 +0200

openssl (3.0.14-1~deb12u1) bookworm; urgency=medium

  * CVE-2024-4741, CVE-2024-4603 (Closes: #1072113)
  * Not affected by CVE-2024-1111.
  * Revert the fix for CVE-2024-2222.

 -- Somebody <CVE-2024-9999@example.com>  Sat, 01 Jun 2024 10:00:00 +0200

ssleay (1:0.9-1) unstable; urgency=low

  * CVE-1999-0428 under the package's old name

 -- Somebody <somebody@example.com>  Fri, 01 Jan 1999 10:00:00 +0100
`

func TestParseChangelog(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []fix
	}{
		{"empty", "", nil},
		{"another format", "2024-01-01  Somebody\n\n\t* CVE-2024-0001 fixed\n", nil},
		{"no CVE", "a2 (1) sid; urgency=low\n\n  * Fix\n", nil},
		{"no line end", "a2 (1) sid; urgency=low\n\n  * CVE-2024-12345", []fix{{"a2", "CVE-2024-12345", "1"}}},
		{"whole", changelog, []fix{
			{"openssl", "CVE-2024-5535", "3.0.15-1~deb12u1"},
			{"openssl", "CVE-2024-4741", "3.0.14-1~deb12u1"},
			{"openssl", "CVE-2024-4603", "3.0.14-1~deb12u1"},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := parseChangelog(strings.NewReader(c.text))
			require.NoError(t, err)
			require.Equal(t, c.want, got)
		})
	}
}

func FuzzParseChangelog(f *testing.F) {
	f.Add(changelog)
	f.Add("a (1) b;\n  CVE-2024-0001")
	f.Fuzz(func(t *testing.T, text string) {
		fixes, err := parseChangelog(strings.NewReader(text))
		require.NoError(t, err)
		seen := map[string]bool{}
		for _, x := range fixes {
			require.NotEmpty(t, x.Source)
			require.NotEmpty(t, x.Version)
			require.True(t, strings.HasPrefix(x.CVE, "CVE-"))
			require.False(t, seen[x.CVE], "one fix a CVE")
			seen[x.CVE] = true
			require.Contains(t, text, x.CVE)
			require.Contains(t, text, x.Source+" ("+x.Version+")")
		}
	})
}

func writeChangelog(t *testing.T, path string) {
	t.Helper()
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, err := z.Write([]byte(changelog))
	require.NoError(t, err)
	require.NoError(t, z.Close())
	require.NoError(t, os.WriteFile(path, packed.Bytes(), 0o644))
}

func TestReadDebian(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"openssl.gz", "libssl3.gz"} {
		writeChangelog(t, filepath.Join(dir, name))
	}
	require.NoError(t, os.Symlink("nowhere", filepath.Join(dir, "dangling.gz")))

	got, err := readDebian([]DebianSource{{Release: "12", Pattern: filepath.Join(dir, "*.gz")}})
	require.NoError(t, err)
	require.Len(t, got, 1)
	require.Len(t, got[0].Fixes, 3, "two binary packages of one source have the same fixes")

	require.NoError(t, os.WriteFile(filepath.Join(dir, "broken.gz"), []byte("x"), 0o644))
	_, err = readDebian([]DebianSource{{Release: "12", Pattern: filepath.Join(dir, "*.gz")}})
	require.ErrorContains(t, err, "broken.gz")
}
