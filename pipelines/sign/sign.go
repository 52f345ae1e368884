// Package sign signs images with a cosign key pair, attaches attestations to them, and verifies both. Signatures are
// stored beside the image in its registry, in the form that cosign v2 reads, and hold for one digest alone.
package sign

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/sigstore/cosign/v2/pkg/cosign/remote"
	"github.com/sigstore/cosign/v2/pkg/oci"
	"github.com/sigstore/cosign/v2/pkg/oci/mutate"
	ociremote "github.com/sigstore/cosign/v2/pkg/oci/remote"
	"github.com/sigstore/cosign/v2/pkg/oci/static"
	"github.com/sigstore/sigstore/pkg/signature"
	signatureoptions "github.com/sigstore/sigstore/pkg/signature/options"
	"github.com/sigstore/sigstore/pkg/signature/payload"

	"github.com/greenlight-ci/greenlight/pipelines/image"
)

// Options says what to sign and with what.
type Options struct {
	// Reference is the image, pinned by digest.
	Reference string `json:"reference"`
	// Key signs.
	Key Key `json:"key"`
	// Registry says how the registry is asked.
	Registry image.Registry `json:"registry"`
	// Annotations become part of what is signed, for example the version. Default: none.
	Annotations map[string]string `json:"annotations,omitempty"`
	// Attestations are attached and signed too. Default: none.
	Attestations []Attestation `json:"attestations,omitempty"`
}

// Result says what was signed.
type Result struct {
	// Reference is the image, pinned by digest.
	Reference string `json:"reference"`
	// Signature is where the registry keeps the signature.
	Signature string `json:"signature"`
	// KeyID is the fingerprint of the public key: sha256:<hex> of its DER form.
	KeyID string `json:"keyId"`
	// Existed is true if this key had signed the same before; nothing was added then.
	Existed bool `json:"existed"`
	// Attestations are the predicate types that were attached.
	Attestations []string `json:"attestations,omitempty"`
}

// Run signs the image, then attaches the attestations. Signing twice adds nothing. Errors wrap ErrKey for a key that
// cannot be used, the errors of package image for references and registries, and never contain the password.
func Run(ctx context.Context, o Options) (Result, error) {
	ref, err := image.ParsePinned(o.Reference)
	if err != nil {
		return Result{}, err
	}
	signer, err := o.Key.load()
	if err != nil {
		return Result{}, err
	}
	store, err := newStore(ctx, ref, o.Registry)
	if err != nil {
		return Result{}, err
	}
	result := Result{Reference: ref.Pinned()}
	if result.KeyID, err = keyID(signer); err != nil {
		return Result{}, err
	}
	tag, err := ociremote.SignatureTag(store.digest, store.options...)
	if err != nil {
		return Result{}, fmt.Errorf("naming the signature of %s: %w", ref.Pinned(), err)
	}
	result.Signature = tag.Name()

	signed, err := newSignature(ctx, signer, store.digest, o.Annotations)
	if err != nil {
		return Result{}, fmt.Errorf("signing %s: %w", ref.Pinned(), err)
	}
	entity, err := store.entity()
	if err != nil {
		return Result{}, fmt.Errorf("signing %s: %w", ref.Pinned(), err)
	}
	if result.Existed, err = alreadySigned(entity, signer, signed); err != nil {
		return Result{}, fmt.Errorf("reading the signatures of %s: %w", ref.Pinned(), image.Explain(ref, err))
	}
	if !result.Existed {
		if entity, err = mutate.AttachSignatureToEntity(entity, signed); err != nil {
			return Result{}, fmt.Errorf("attaching the signature to %s: %w", ref.Pinned(), image.Explain(ref, err))
		}
		if err := ociremote.WriteSignatures(store.digest.Repository, entity, store.options...); err != nil {
			return Result{}, fmt.Errorf("storing the signature of %s: %w", ref.Pinned(), image.Explain(ref, err))
		}
	}
	for _, attestation := range o.Attestations {
		predicateType, err := attest(ctx, store, signer, attestation)
		if err != nil {
			return result, fmt.Errorf("attesting %s: %w", ref.Pinned(), err)
		}
		result.Attestations = append(result.Attestations, predicateType)
	}
	return result, nil
}

// store is where an image's signatures and attestations are kept.
type store struct {
	ref     image.Reference
	digest  name.Digest
	options []ociremote.Option
}

func newStore(ctx context.Context, ref image.Reference, registry image.Registry) (store, error) {
	requests, err := registry.Options(ctx)
	if err != nil {
		return store{}, err
	}
	digest, err := name.NewDigest(ref.Pinned(), registry.NameOptions()...)
	if err != nil {
		return store{}, fmt.Errorf("%w: %w", image.ErrReference, err)
	}
	return store{
		ref:    ref,
		digest: digest,
		options: []ociremote.Option{
			ociremote.WithRemoteOptions(requests...),
			ociremote.WithNameOptions(registry.NameOptions()...),
		},
	}, nil
}

// entity is the image in the registry with what is attached to it. An image that is not there cannot be signed: a
// signature that waits for its image would be a blank cheque.
func (s store) entity() (oci.SignedEntity, error) {
	entity, err := ociremote.SignedEntity(s.digest, s.options...)
	var missing *ociremote.EntityNotFoundError
	if errors.As(err, &missing) {
		return nil, fmt.Errorf("%w: %s has no %s@%s; push it first, or correct the reference", image.ErrNotFound, s.ref.Registry, s.ref.Repository, s.ref.Digest)
	}
	if err != nil {
		return nil, image.Explain(s.ref, err)
	}
	return entity, nil
}

// newSignature signs the statement "this digest, these annotations".
func newSignature(ctx context.Context, signer signature.Signer, digest name.Digest, annotations map[string]string) (oci.Signature, error) {
	statement := payload.Cosign{Image: digest}
	if len(annotations) > 0 {
		statement.Annotations = make(map[string]any, len(annotations))
		for key, value := range annotations {
			statement.Annotations[key] = value
		}
	}
	content, err := statement.MarshalJSON()
	if err != nil {
		return nil, err
	}
	raw, err := signer.SignMessage(bytes.NewReader(content), signatureoptions.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	return static.NewSignature(content, base64.StdEncoding.EncodeToString(raw))
}

// alreadySigned says whether the key has signed the same statement before. ECDSA signatures differ every time, so
// without this each release of an unchanged image would add one.
func alreadySigned(entity oci.SignedEntity, verifier signature.Verifier, signed oci.Signature) (bool, error) {
	existing, err := entity.Signatures()
	if err != nil {
		return false, err
	}
	duplicate, err := remote.NewDupeDetector(verifier).Find(existing, signed)
	return duplicate != nil, err
}
