package sign

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/sigstore/cosign/v2/pkg/cosign"
	"github.com/sigstore/cosign/v2/pkg/oci"
	ociremote "github.com/sigstore/cosign/v2/pkg/oci/remote"
	"github.com/sigstore/sigstore/pkg/signature/payload"

	"github.com/greenlight-ci/greenlight/pipelines/image"
)

// ErrUnverified is wrapped by errors about images that the registry has but that carry no signature, or not every
// attestation, that the key stands for.
var ErrUnverified = errors.New("image is not verified")

// VerifyOptions says what must be true of an image.
type VerifyOptions struct {
	// Reference is the image, pinned by digest.
	Reference string `json:"reference"`
	// Key must have signed it.
	Key PublicKey `json:"key"`
	// Registry says how the registry is asked.
	Registry image.Registry `json:"registry"`
	// Annotations must all be in the signature. Default: none required.
	Annotations map[string]string `json:"annotations,omitempty"`
	// Attestations are the types (as in Attestation.Type) that must be attached and signed. Default: none required.
	Attestations []string `json:"attestations,omitempty"`
}

// Verification says what was found to be true of an image.
type Verification struct {
	// Reference is the image, pinned by digest.
	Reference string `json:"reference"`
	// KeyID is the fingerprint of the key that signed.
	KeyID string `json:"keyId"`
	// Signatures is the number of good signatures by that key.
	Signatures int `json:"signatures"`
	// Annotations are those of the first good signature.
	Annotations map[string]string `json:"annotations,omitempty"`
	// Attestations are the predicate types that were required and found.
	Attestations []string `json:"attestations,omitempty"`
}

// Verify checks that the image in the registry is signed by the key, for this digest, with the annotations, and carries
// the attestations. Errors wrap ErrUnverified when the registry answered and the answer is no; ErrKey or the errors of
// package image when it could not be asked.
func Verify(ctx context.Context, o VerifyOptions) (Verification, error) {
	ref, err := image.ParsePinned(o.Reference)
	if err != nil {
		return Verification{}, err
	}
	verifier, err := o.Key.load()
	if err != nil {
		return Verification{}, err
	}
	store, err := newStore(ctx, ref, o.Registry)
	if err != nil {
		return Verification{}, err
	}
	result := Verification{Reference: ref.Pinned()}
	if result.KeyID, err = keyID(verifier); err != nil {
		return Verification{}, err
	}
	check := &cosign.CheckOpts{
		RegistryClientOpts: store.options,
		SigVerifier:        verifier,
		ClaimVerifier:      verifyClaim,
		Annotations:        anyValues(o.Annotations),
		// A key of one's own is trusted directly; there is no transparency log to ask about it.
		IgnoreTlog: true,
		Offline:    true,
	}
	good, _, err := cosign.VerifyImageSignatures(ctx, store.digest, check)
	if err != nil {
		return Verification{}, fmt.Errorf("verifying %s: %w", ref.Pinned(), store.whyUnverified(ctx, check, o.Key, result.KeyID, err))
	}
	result.Signatures = len(good)
	if result.Annotations, err = annotations(good[0]); err != nil {
		return Verification{}, fmt.Errorf("reading the signature of %s: %w", ref.Pinned(), err)
	}
	if result.Attestations, err = verifyAttestations(ctx, store, check, o.Attestations); err != nil {
		return Verification{}, fmt.Errorf("verifying %s: %w", ref.Pinned(), err)
	}
	return result, nil
}

// verifyClaim checks that the signed statement is an image signature at all, and that it is about this digest.
func verifyClaim(signed oci.Signature, digest v1.Hash, annotations map[string]any) error {
	statement, err := claim(signed)
	if err != nil {
		return err
	}
	if statement.Critical.Type != payload.CosignSignatureType {
		return fmt.Errorf("the signed statement is a %q, not an image signature", statement.Critical.Type)
	}
	return cosign.SimpleClaimVerifier(signed, digest, annotations)
}

func claim(signed oci.Signature) (payload.SimpleContainerImage, error) {
	var statement payload.SimpleContainerImage
	content, err := signed.Payload()
	if err != nil {
		return statement, err
	}
	return statement, json.Unmarshal(content, &statement)
}

func annotations(signed oci.Signature) (map[string]string, error) {
	statement, err := claim(signed)
	if err != nil || len(statement.Optional) == 0 {
		return nil, err
	}
	texts := make(map[string]string, len(statement.Optional))
	for key, value := range statement.Optional {
		texts[key] = fmt.Sprint(value)
	}
	return texts, nil
}

// whyUnverified says in one line why cosign said no. The decision has been made by then; this only looks for the reason.
func (s store) whyUnverified(ctx context.Context, check *cosign.CheckOpts, key PublicKey, id string, verdict error) error {
	var none *cosign.ErrNoSignaturesFound
	var wrong *cosign.ErrNoMatchingSignatures
	switch {
	case errors.As(verdict, &none):
		if _, err := s.entity(); errors.Is(err, image.ErrNotFound) {
			return err
		}
		return fmt.Errorf("%w: it has no signature; sign it with the key that belongs to %s", ErrUnverified, key.origin())
	case !errors.As(verdict, &wrong):
		return image.Explain(s.ref, verdict)
	}
	signatures, err := s.signatures()
	if err != nil {
		return fmt.Errorf("%w: no signature on it is good", ErrUnverified)
	}
	digest, err := v1.NewHash(s.ref.Digest)
	if err != nil {
		return fmt.Errorf("%w: %w", image.ErrReference, err)
	}
	keyOnly := *check
	keyOnly.ClaimVerifier = nil
	var elsewhere []string
	byKey := 0
	for _, signed := range signatures {
		if _, err := cosign.VerifyImageSignature(ctx, signed, digest, &keyOnly); err != nil {
			continue
		}
		byKey++
		if statement, err := claim(signed); err == nil && statement.Critical.Image.DockerManifestDigest != s.ref.Digest {
			elsewhere = append(elsewhere, statement.Critical.Image.DockerManifestDigest)
		}
	}
	switch {
	case byKey == 0:
		return fmt.Errorf("%w: it is signed (%s), but not by %s (%s): another key's signature, or an altered one", ErrUnverified, count(len(signatures), "signature"), key.origin(), id)
	case len(elsewhere) == byKey:
		return fmt.Errorf("%w: the signature on it was made for another image, %q; signatures do not transfer", ErrUnverified, elsewhere[0])
	}
	wanted := slices.Sorted(maps.Keys(check.Annotations))
	return fmt.Errorf("%w: it is signed by the right key, but the signature does not state what is required of %s", ErrUnverified, strings.Join(wanted, ", "))
}

func (s store) signatures() ([]oci.Signature, error) {
	tag, err := ociremote.SignatureTag(s.digest, s.options...)
	if err != nil {
		return nil, err
	}
	attached, err := ociremote.Signatures(tag, s.options...)
	if err != nil {
		return nil, err
	}
	return attached.Get()
}

func anyValues(texts map[string]string) map[string]any {
	if len(texts) == 0 {
		return nil
	}
	values := make(map[string]any, len(texts))
	for key, text := range texts {
		values[key] = text
	}
	return values
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
