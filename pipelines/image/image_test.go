package image_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/greenlight-ci/greenlight/pipelines/image"
)

const digest = "sha256:27c3135420bc184e86977170b6158c6133be3c7cc5c35e9e4fa87bdda629dc2b"

func TestParse(t *testing.T) {
	for _, c := range []struct {
		text, whole, pinned string
	}{
		{"registry.localhost:15000/demo@" + digest, "registry.localhost:15000/demo@" + digest, "registry.localhost:15000/demo@" + digest},
		{"registry.localhost:15000/team/demo:v1.0.0-3f2a1c9@" + digest, "registry.localhost:15000/team/demo:v1.0.0-3f2a1c9@" + digest, "registry.localhost:15000/team/demo@" + digest},
		{"debian", "index.docker.io/library/debian", ""},
		{"pytorch/pytorch:2.7.0", "index.docker.io/pytorch/pytorch:2.7.0", ""},
		{"localhost:5000/x", "localhost:5000/x", ""},
		{"[::1]:5000/x:y", "[::1]:5000/x:y", ""},
	} {
		ref, err := image.Parse(c.text)
		require.NoError(t, err, c.text)
		require.Equal(t, c.whole, ref.String())
		require.Equal(t, c.pinned, ref.Pinned())
	}
	for _, text := range []string{
		"", " ", "@" + digest, "x@sha256:12", "x@md5:" + strings.Repeat("0", 32), "x@" + strings.ToUpper(digest), "x:", "x:a b", "Upper/Case",
		"x@" + digest + "@" + digest, "x:-", "x:" + strings.Repeat("a", 129), "../x", "x/../y", "x@", "http://host/x", "x@" + digest + "\n", "x\n@" + digest,
	} {
		_, err := image.Parse(text)
		require.ErrorIs(t, err, image.ErrReference, "%q", text)
		require.NotContains(t, err.Error(), "\n")
	}
}

func TestParsePinned(t *testing.T) {
	for text, message := range map[string]string{
		"demo":                   "has no digest",
		"demo:v1.0.0-3f2a1c9":    "has no digest",
		"demo:latest":            "says latest",
		"demo:latest@" + digest:  "says latest",
		"host:1/demo":            "write host:1/demo@sha256:",
		"host.example/demo:main": "has no digest",
	} {
		_, err := image.ParsePinned(text)
		require.ErrorIs(t, err, image.ErrMutable, text)
		require.ErrorContains(t, err, message)
	}
	ref, err := image.ParsePinned("demo:v1.0.0-3f2a1c9@" + digest)
	require.NoError(t, err)
	require.Equal(t, "v1.0.0-3f2a1c9", ref.Tag)
	_, err = ref.WithDigest("sha256:1")
	require.ErrorIs(t, err, image.ErrReference)
}

func FuzzParse(f *testing.F) {
	f.Add("registry.localhost:15000/demo:v1@" + digest)
	f.Add("a:b/c:d")
	f.Fuzz(func(t *testing.T, text string) {
		ref, err := image.Parse(text)
		if err != nil {
			return
		}
		// What is written must be read as the same again.
		again, err := image.Parse(ref.String())
		require.NoError(t, err, ref.String())
		require.Equal(t, ref, again)
	})
}

func TestVersion(t *testing.T) {
	for text, want := range map[string]image.Version{
		"v1.4.0-3f2a1c9":                        {Semantic: "v1.4.0", Commit: "3f2a1c9"},
		"v0.0.0-0000000":                        {Semantic: "v0.0.0", Commit: "0000000"},
		"v2.0.0-rc.1-3f2a1c9d":                  {Semantic: "v2.0.0-rc.1", Commit: "3f2a1c9d"},
		"v2.0.0-a-b-" + strings.Repeat("a", 12): {Semantic: "v2.0.0-a-b", Commit: strings.Repeat("a", 12)},
	} {
		got, err := image.ParseVersion(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got)
		require.Equal(t, text, got.String())
	}
	for _, text := range []string{
		"", "latest", "main", "v1.4.0", "1.4-3f2a1c9", "v1.4.0-", "v1.4.0-xyz1234", "v1.4.0-3F2A1C9", "v1.4.0-3f2a1c", "v01.4.0-3f2a1c9", "v1.4.0-rc.01-3f2a1c9",
		"v1.4.0+build-3f2a1c9", "v1.4.0-3f2a1c9\n", "v1.4.0 -3f2a1c9", "v1.4.0-" + strings.Repeat("a", 60) + "-3f2a1c9", "v1.4.0-" + strings.Repeat("a", 41),
	} {
		_, err := image.ParseVersion(text)
		require.ErrorIs(t, err, image.ErrReference, "%q", text)
	}
	v, err := image.NewVersion("1.4.0", strings.Repeat("ab", 20))
	require.NoError(t, err)
	require.Equal(t, "v1.4.0-abababababab", v.String())
}

func TestPins(t *testing.T) {
	pins, err := image.ReadPins(filepath.Join("..", "..", "images", "bases.json"))
	require.NoError(t, err)
	ref, err := pins.Base("")
	require.NoError(t, err)
	require.NotEmpty(t, ref.Digest)

	for name, c := range map[string]struct{ json, message string }{
		"unpinned":       {`{"default":"a","bases":{"a":{"reference":"debian:12"}}}`, `base "a"`},
		"latest":         {`{"default":"a","bases":{"a":{"reference":"debian:latest@` + digest + `"}}}`, "latest"},
		"nothing":        {`{"default":"a","bases":{"a":{"reference":null}}}`, "neither reference nor builtBy"},
		"no default":     {`{"default":"b","bases":{"a":{"reference":"debian@` + digest + `"}}}`, `default "b" is none`},
		"unknown key":    {`{"default":"a","base":{}}`, `unknown field "base"`},
		"trailing":       {`{"default":"a","bases":{"a":{"reference":"debian@` + digest + `"}}} {}`, "follows"},
		"not JSON":       {`default: a`, "invalid character"},
		"nothing at all": {``, "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := image.ParsePins([]byte(c.json))
			require.ErrorContains(t, err, c.message)
		})
	}
	built, err := image.ParsePins([]byte(`{"default":"here","bases":{"here":{"reference":null,"builtBy":"the sandbox"}}}`))
	require.NoError(t, err)
	_, err = built.Base("")
	require.ErrorIs(t, err, image.ErrPins)
	require.ErrorContains(t, err, "is built by the sandbox")
	_, err = built.Base("there")
	require.ErrorContains(t, err, "known: here")
	_, err = image.ReadPins(filepath.Join(t.TempDir(), "bases.json"))
	require.ErrorIs(t, err, image.ErrPins)
}
