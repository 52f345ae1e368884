package sign_test

import (
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/require"

	"github.com/greenlight-ci/greenlight/pipelines/image"
	"github.com/greenlight-ci/greenlight/pipelines/sign"
)

// canary is the password of the tests' keys; it must never come out anywhere.
const canary = "canary-password-7f3a"

func quick() image.Registry { return image.Registry{Pause: time.Millisecond} }

// newRegistry starts a registry and returns its host.
func newRegistry(t *testing.T, wrap func(http.Handler) http.Handler) string {
	t.Helper()
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	if wrap != nil {
		handler = wrap(handler)
	}
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

// push stores a new image in repository and returns its reference by digest.
func push(t *testing.T, repository string) string {
	t.Helper()
	made, err := random.Image(64, 1)
	require.NoError(t, err)
	digest, err := made.Digest()
	require.NoError(t, err)
	ref, err := name.NewDigest(repository + "@" + digest.String())
	require.NoError(t, err)
	require.NoError(t, remote.Write(ref, made))
	return ref.String()
}

// keyPair makes a key pair and returns both halves.
func keyPair(t *testing.T) (sign.Key, sign.PublicKey) {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, sign.GenerateKeyPair(dir, []byte(canary)))
	return sign.Key{File: filepath.Join(dir, sign.PrivateKeyFile), Password: []byte(canary)},
		sign.PublicKey{File: filepath.Join(dir, sign.PublicKeyFile)}
}

func signatureTag(t *testing.T, ref, suffix string) name.Tag {
	t.Helper()
	digest, err := name.NewDigest(ref)
	require.NoError(t, err)
	return digest.Context().Tag(strings.Replace(digest.DigestStr(), ":", "-", 1) + suffix)
}

// copyTag puts what is stored under one tag under another.
func copyTag(t *testing.T, from, to name.Tag) {
	t.Helper()
	stored, err := remote.Image(from)
	require.NoError(t, err)
	require.NoError(t, remote.Write(to, stored))
}

// alter stores a changed copy of the signature image under its own tag.
func alter(t *testing.T, tag name.Tag, change func(payload []byte, annotations map[string]string) []byte) {
	t.Helper()
	stored, err := remote.Image(tag)
	require.NoError(t, err)
	manifest, err := stored.Manifest()
	require.NoError(t, err)
	layers, err := stored.Layers()
	require.NoError(t, err)
	altered := mutate.MediaType(v1.Image(mustEmpty(t, stored)), types.OCIManifestSchema1)
	for i, layer := range layers {
		reader, err := layer.Uncompressed()
		require.NoError(t, err)
		payload, err := io.ReadAll(reader)
		require.NoError(t, err)
		annotations := map[string]string{}
		for key, value := range manifest.Layers[i].Annotations {
			annotations[key] = value
		}
		payload = change(payload, annotations)
		altered, err = mutate.Append(altered, mutate.Addendum{Layer: static.NewLayer(payload, manifest.Layers[i].MediaType), Annotations: annotations})
		require.NoError(t, err)
	}
	require.NoError(t, remote.Write(tag, altered))
}

// mustEmpty is an image without layers.
func mustEmpty(t *testing.T, _ v1.Image) v1.Image {
	t.Helper()
	empty, err := random.Image(1, 0)
	require.NoError(t, err)
	return empty
}

func verify(t *testing.T, ref string, key sign.PublicKey) (sign.Verification, error) {
	t.Helper()
	return sign.Verify(t.Context(), sign.VerifyOptions{Reference: ref, Key: key, Registry: quick()})
}

func TestSignAndVerify(t *testing.T) {
	host := newRegistry(t, nil)
	ref := push(t, host+"/team/demo")
	key, public := keyPair(t)

	result, err := sign.Run(t.Context(), sign.Options{Reference: ref, Key: key, Registry: quick(), Annotations: map[string]string{"version": "v1.0.0-3f2a1c9"}})
	require.NoError(t, err)
	require.False(t, result.Existed)
	require.Equal(t, signatureTag(t, ref, ".sig").Name(), result.Signature)

	verified, err := verify(t, ref, public)
	require.NoError(t, err)
	require.Equal(t, 1, verified.Signatures)
	require.Equal(t, result.KeyID, verified.KeyID)
	require.Equal(t, map[string]string{"version": "v1.0.0-3f2a1c9"}, verified.Annotations)

	// The same again adds nothing; another key's signature is added beside it.
	again, err := sign.Run(t.Context(), sign.Options{Reference: ref, Key: key, Registry: quick(), Annotations: map[string]string{"version": "v1.0.0-3f2a1c9"}})
	require.NoError(t, err)
	require.True(t, again.Existed)
	otherKey, otherPublic := keyPair(t)
	_, err = sign.Run(t.Context(), sign.Options{Reference: ref, Key: otherKey, Registry: quick()})
	require.NoError(t, err)
	for _, key := range []sign.PublicKey{public, otherPublic} {
		verified, err = verify(t, ref, key)
		require.NoError(t, err)
		require.Equal(t, 1, verified.Signatures)
	}
	_, err = sign.Verify(t.Context(), sign.VerifyOptions{Reference: ref, Key: public, Registry: quick(), Annotations: map[string]string{"version": "v1.0.0-3f2a1c9"}})
	require.NoError(t, err)
	_, err = sign.Verify(t.Context(), sign.VerifyOptions{Reference: ref, Key: public, Registry: quick(), Annotations: map[string]string{"version": "v2.0.0-3f2a1c9"}})
	require.ErrorIs(t, err, sign.ErrUnverified)
	require.ErrorContains(t, err, "does not state what is required of version")
}

func TestUnverified(t *testing.T) {
	host := newRegistry(t, nil)
	key, public := keyPair(t)
	otherKey, _ := keyPair(t)
	signWith := func(t *testing.T, ref string, key sign.Key) {
		t.Helper()
		_, err := sign.Run(t.Context(), sign.Options{Reference: ref, Key: key, Registry: quick()})
		require.NoError(t, err)
	}
	for name, c := range map[string]struct {
		prepare func(t *testing.T, ref string)
		message string
	}{
		"no signature": {func(*testing.T, string) {}, "it has no signature"},
		"another key":  {func(t *testing.T, ref string) { signWith(t, ref, otherKey) }, "not by"},
		"transplanted": {func(t *testing.T, ref string) {
			donor := push(t, host+"/team/demo")
			signWith(t, donor, key)
			copyTag(t, signatureTag(t, donor, ".sig"), signatureTag(t, ref, ".sig"))
		}, "made for another image"},
		"payload altered": {func(t *testing.T, ref string) {
			donor := push(t, host+"/team/demo")
			signWith(t, donor, key)
			copyTag(t, signatureTag(t, donor, ".sig"), signatureTag(t, ref, ".sig"))
			alter(t, signatureTag(t, ref, ".sig"), func(payload []byte, _ map[string]string) []byte {
				return []byte(strings.Replace(string(payload), donor[strings.Index(donor, "sha256:"):], ref[strings.Index(ref, "sha256:"):], 1))
			})
		}, "an altered one"},
		"signature altered": {func(t *testing.T, ref string) {
			signWith(t, ref, key)
			alter(t, signatureTag(t, ref, ".sig"), func(payload []byte, annotations map[string]string) []byte {
				annotations["dev.cosignproject.cosign/signature"] = "MEUCIQDgVVVV" + annotations["dev.cosignproject.cosign/signature"][12:]
				return payload
			})
		}, "an altered one"},
		"signature emptied": {func(t *testing.T, ref string) {
			signWith(t, ref, key)
			alter(t, signatureTag(t, ref, ".sig"), func(payload []byte, annotations map[string]string) []byte {
				delete(annotations, "dev.cosignproject.cosign/signature")
				return payload
			})
		}, "no signature on it is good|an altered one"},
		"an image for a signature": {func(t *testing.T, ref string) {
			junk, err := random.Image(64, 2)
			require.NoError(t, err)
			require.NoError(t, remote.Write(signatureTag(t, ref, ".sig"), junk))
		}, "no signature|an altered one|is not good"},
		"an attestation for a signature": {func(t *testing.T, ref string) {
			_, err := sign.Run(t.Context(), sign.Options{Reference: ref, Key: key, Registry: quick(), Attestations: []sign.Attestation{{Type: sign.CycloneDX, Content: []byte(`{}`)}}})
			require.NoError(t, err)
			copyTag(t, signatureTag(t, ref, ".att"), signatureTag(t, ref, ".sig"))
		}, "no signature|an altered one"},
	} {
		t.Run(name, func(t *testing.T) {
			ref := push(t, host+"/team/demo")
			c.prepare(t, ref)
			_, err := verify(t, ref, public)
			require.ErrorIs(t, err, sign.ErrUnverified)
			require.Regexp(t, c.message, err.Error())
			require.NotContains(t, err.Error(), "\n")
		})
	}
}

func TestReferences(t *testing.T) {
	host := newRegistry(t, nil)
	key, public := keyPair(t)
	for _, ref := range []string{host + "/team/demo", host + "/team/demo:v1", host + "/team/demo:latest@sha256:" + strings.Repeat("0", 64)} {
		_, err := sign.Run(t.Context(), sign.Options{Reference: ref, Key: key, Registry: quick()})
		require.ErrorIs(t, err, image.ErrMutable)
		_, err = verify(t, ref, public)
		require.ErrorIs(t, err, image.ErrMutable)
	}
	absent := host + "/team/demo@sha256:" + strings.Repeat("0", 64)
	_, err := sign.Run(t.Context(), sign.Options{Reference: absent, Key: key, Registry: quick()})
	require.ErrorIs(t, err, image.ErrNotFound)
	_, err = verify(t, absent, public)
	require.ErrorIs(t, err, image.ErrNotFound)
	require.NotErrorIs(t, err, sign.ErrUnverified)
}

func TestKeys(t *testing.T) {
	host := newRegistry(t, nil)
	ref := push(t, host+"/team/demo")
	dir := t.TempDir()
	require.NoError(t, sign.GenerateKeyPair(dir, []byte(canary)))
	private, public := filepath.Join(dir, sign.PrivateKeyFile), filepath.Join(dir, sign.PublicKeyFile)
	info, err := os.Stat(private)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	err = sign.GenerateKeyPair(dir, []byte(canary))
	require.ErrorIs(t, err, sign.ErrKey)
	require.ErrorContains(t, err, "exists already")

	write := func(name, content string) string {
		path := filepath.Join(t.TempDir(), name)
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		return path
	}
	t.Setenv("COSIGN_PASSWORD", canary)
	t.Setenv("WRONG_PASSWORD", canary+"x")
	plain := "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
	for name, c := range map[string]struct {
		key     sign.Key
		message string
	}{
		"environment":                {sign.Key{File: private}, ""},
		"file":                       {sign.Key{File: private, PasswordFile: write("password", canary)}, ""},
		"file with a line end":       {sign.Key{File: private, PasswordFile: write("password", canary+"\r\n")}, ""},
		"file with two line ends":    {sign.Key{File: private, PasswordFile: write("password", canary+"\n\n")}, "wrong password"},
		"wrong in the environment":   {sign.Key{File: private, PasswordEnv: "WRONG_PASSWORD"}, "the password from $WRONG_PASSWORD: wrong password"},
		"unset":                      {sign.Key{File: private, PasswordEnv: "NO_SUCH_PASSWORD"}, "set NO_SUCH_PASSWORD"},
		"no password file":           {sign.Key{File: private, PasswordFile: filepath.Join(dir, "none")}, "no such file"},
		"no key":                     {sign.Key{}, "none given"},
		"no key file":                {sign.Key{File: filepath.Join(dir, "none.key")}, "no such file"},
		"public key":                 {sign.Key{File: public}, "is a public key"},
		"not PEM":                    {sign.Key{File: write("cosign.key", canary)}, "is no PEM file"},
		"not encrypted":              {sign.Key{PEM: []byte(plain)}, "not an encrypted cosign key"},
		"damaged":                    {sign.Key{PEM: []byte("-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED SIGSTORE PRIVATE KEY-----\n")}, "damaged file"},
		"password given by the call": {sign.Key{File: private, Password: []byte("no")}, "wrong password"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := sign.Run(t.Context(), sign.Options{Reference: ref, Key: c.key, Registry: quick()})
			if c.message == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, sign.ErrKey)
			require.ErrorContains(t, err, c.message)
			require.NotContains(t, err.Error(), canary)
			require.NotContains(t, err.Error(), "\n")
		})
	}
	for name, key := range map[string]sign.PublicKey{
		"none": {}, "no file": {File: filepath.Join(dir, "none.pub")}, "private": {File: private}, "not PEM": {PEM: []byte(canary)},
	} {
		t.Run("public: "+name, func(t *testing.T) {
			_, err := verify(t, ref, key)
			require.ErrorIs(t, err, sign.ErrKey)
			require.NotContains(t, err.Error(), canary)
		})
	}
	// Options are logged and put into reports.
	encoded, err := json.Marshal(sign.Options{Reference: ref, Key: sign.Key{File: private, PEM: []byte(canary), Password: []byte(canary)}})
	require.NoError(t, err)
	require.NotContains(t, string(encoded), canary)
	half, err := sign.Key{File: private}.Public()
	require.NoError(t, err)
	written, err := os.ReadFile(public)
	require.NoError(t, err)
	require.Equal(t, string(written), string(half))
}

func TestAttestations(t *testing.T) {
	host := newRegistry(t, nil)
	ref := push(t, host+"/team/demo")
	key, public := keyPair(t)
	otherKey, _ := keyPair(t)
	vulnerabilities, err := sign.VulnerabilityPredicate("https://trivy.dev", "0.74.0", "registry.localhost:15000/greenlight/trivy-db:2", time.Now(), time.Now(), []byte(`{"schema":1}`))
	require.NoError(t, err)
	run := func(key sign.Key, attestations ...sign.Attestation) error {
		_, err := sign.Run(t.Context(), sign.Options{Reference: ref, Key: key, Registry: quick(), Attestations: attestations})
		return err
	}
	require.NoError(t, run(key, sign.Attestation{Type: sign.CycloneDX, Content: []byte(`{"bomFormat":"CycloneDX"}`)}, sign.Attestation{Type: sign.Vulnerability, Content: vulnerabilities}))
	require.NoError(t, run(key, sign.Attestation{Type: sign.CycloneDX, Content: []byte(`{"bomFormat":"CycloneDX","version":2}`)}))
	require.NoError(t, run(otherKey, sign.Attestation{Type: sign.SPDX, Content: []byte(`{}`)}, sign.Attestation{Type: sign.CycloneDX, Content: []byte(`{}`)}))
	require.NoError(t, run(key, sign.Attestation{Type: "https://greenlight.dev/release/v1", Content: []byte(`{"id":"x"}`)}))

	stored, err := remote.Image(signatureTag(t, ref, ".att"))
	require.NoError(t, err)
	manifest, err := stored.Manifest()
	require.NoError(t, err)
	// Ours: the newer SBOM, vulnerabilities, release; theirs: two.
	require.Len(t, manifest.Layers, 5)

	check := func(ref string, types ...string) error {
		_, err := sign.Verify(t.Context(), sign.VerifyOptions{Reference: ref, Key: public, Registry: quick(), Attestations: types})
		return err
	}
	require.NoError(t, check(ref, sign.CycloneDX, sign.Vulnerability, "https://greenlight.dev/release/v1"))
	for _, missing := range []string{sign.SPDX, sign.SLSA} {
		err := check(ref, sign.CycloneDX, missing)
		require.ErrorIs(t, err, sign.ErrUnverified)
		require.ErrorContains(t, err, "no "+missing+" attestation")
	}
	require.ErrorIs(t, check(ref, "nonsense"), sign.ErrPredicate)

	// Attestations do not transfer to another image either.
	second := push(t, host+"/team/demo")
	_, err = sign.Run(t.Context(), sign.Options{Reference: second, Key: key, Registry: quick()})
	require.NoError(t, err)
	copyTag(t, signatureTag(t, ref, ".att"), signatureTag(t, second, ".att"))
	require.ErrorIs(t, check(second, sign.CycloneDX), sign.ErrUnverified)

	for _, bad := range []sign.Attestation{
		{Type: "nonsense", Content: []byte(`{}`)},
		{Type: sign.CycloneDX, Content: []byte(`{`)},
		{Type: sign.CycloneDX, File: filepath.Join(t.TempDir(), "none.json")},
		{Type: sign.SLSA, Content: []byte(`{}`)},
	} {
		require.ErrorIs(t, run(key, bad), sign.ErrPredicate, bad.Type)
	}
}

func TestRegistryTrouble(t *testing.T) {
	var broken atomic.Int64
	host := newRegistry(t, func(inner http.Handler) http.Handler {
		var requests atomic.Int64
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch status := broken.Load(); {
			case status == 1:
				// Two of three requests are turned away.
				if requests.Add(1)%3 != 0 {
					w.Header().Set("Retry-After", "0")
					w.WriteHeader(http.StatusTooManyRequests)
					return
				}
			case status > 1:
				w.WriteHeader(int(status))
				return
			}
			inner.ServeHTTP(w, r)
		})
	})
	ref := push(t, host+"/team/demo")
	key, public := keyPair(t)
	broken.Store(1)
	_, err := sign.Run(t.Context(), sign.Options{Reference: ref, Key: key, Registry: quick(), Attestations: []sign.Attestation{{Type: sign.CycloneDX, Content: []byte(`{}`)}}})
	require.NoError(t, err)
	_, err = sign.Verify(t.Context(), sign.VerifyOptions{Reference: ref, Key: public, Registry: quick(), Attestations: []string{sign.CycloneDX}})
	require.NoError(t, err)
	for status, sentinel := range map[int64]error{401: image.ErrUnauthorized, 403: image.ErrUnauthorized, 429: image.ErrUnreachable, 500: image.ErrUnreachable} {
		broken.Store(status)
		_, err := sign.Run(t.Context(), sign.Options{Reference: ref, Key: key, Registry: quick()})
		require.ErrorIs(t, err, sentinel)
		require.NotContains(t, err.Error(), "\n")
		_, err = verify(t, ref, public)
		require.ErrorIs(t, err, sentinel)
		require.NotErrorIs(t, err, sign.ErrUnverified)
	}
}
