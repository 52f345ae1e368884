package sign

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/sigstore/cosign/v2/pkg/cosign"
	"github.com/sigstore/cosign/v2/pkg/cosign/attestation"
	"github.com/sigstore/cosign/v2/pkg/oci"
	"github.com/sigstore/cosign/v2/pkg/oci/mutate"
	ociremote "github.com/sigstore/cosign/v2/pkg/oci/remote"
	"github.com/sigstore/cosign/v2/pkg/oci/static"
	"github.com/sigstore/cosign/v2/pkg/types"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/dsse"
	signatureoptions "github.com/sigstore/sigstore/pkg/signature/options"

	"github.com/greenlight-ci/greenlight/pipelines/image"
)

// ErrPredicate is wrapped by errors about an attestation's content or type.
var ErrPredicate = errors.New("attestation")

// Types of attestations, with cosign's short names.
const (
	CycloneDX     = "cyclonedx"
	Vulnerability = "vuln"
	SLSA          = "slsaprovenance1"
	SPDX          = "spdxjson"
	OpenVEX       = "openvex"
)

// Attestation is a signed statement about an image.
type Attestation struct {
	// Type is one of the short names above or the URI of a predicate type of one's own.
	Type string `json:"type"`
	// File holds the predicate, in JSON.
	File string `json:"file,omitempty"`
	// Content is the predicate itself, used instead of File.
	Content []byte `json:"-"`
}

// predicateURI is the name under which a type is stored.
func predicateURI(short string) (string, error) {
	switch short {
	case CycloneDX:
		return "https://cyclonedx.org/bom", nil
	case Vulnerability:
		return attestation.CosignVulnProvenanceV01, nil
	case SLSA:
		return "https://slsa.dev/provenance/v1", nil
	case SPDX:
		return "https://spdx.dev/Document", nil
	case OpenVEX:
		return attestation.OpenVexNamespace, nil
	}
	if parsed, err := url.ParseRequestURI(short); err != nil || parsed.Scheme == "" || parsed.Host == "" {
		return "", fmt.Errorf("%w: type %q is unknown; known: %s, or a URI", ErrPredicate, short, strings.Join([]string{CycloneDX, Vulnerability, SLSA, SPDX, OpenVEX}, ", "))
	}
	return short, nil
}

// attest signs the statement about the image and attaches it, in place of an earlier one of its type by the same key.
func attest(ctx context.Context, s store, signer signature.SignerVerifier, a Attestation) (string, error) {
	predicateType, err := predicateURI(a.Type)
	if err != nil {
		return "", err
	}
	content := a.Content
	if len(content) == 0 {
		if content, err = os.ReadFile(a.File); err != nil {
			return "", fmt.Errorf("%w: reading the %s predicate: %w", ErrPredicate, a.Type, err)
		}
	}
	if !json.Valid(content) {
		return "", fmt.Errorf("%w: the %s predicate %s is not JSON", ErrPredicate, a.Type, a.File)
	}
	statement, err := attestation.GenerateStatement(attestation.GenerateOpts{
		Predicate: bytes.NewReader(content),
		Type:      a.Type,
		Digest:    strings.TrimPrefix(s.ref.Digest, "sha256:"),
		Repo:      s.ref.Name(),
	})
	if err != nil {
		return "", fmt.Errorf("%w: the %s predicate: %w", ErrPredicate, a.Type, err)
	}
	body, err := json.Marshal(statement)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrPredicate, err)
	}
	envelope, err := dsse.WrapSigner(signer, types.IntotoPayloadType).SignMessage(bytes.NewReader(body), signatureoptions.WithContext(ctx))
	if err != nil {
		return "", fmt.Errorf("signing: %w", err)
	}
	signed, err := static.NewAttestation(envelope,
		static.WithLayerMediaType(types.DssePayloadType),
		static.WithAnnotations(map[string]string{"predicateType": predicateType}))
	if err != nil {
		return "", err
	}
	// The image itself was looked up when it was signed.
	entity, err := mutate.AttachAttestationToEntity(ociremote.SignedUnknown(s.digest, s.options...), signed,
		mutate.WithReplaceOp(replacing{verifier: signer, predicateType: predicateType}))
	if err != nil {
		return "", image.Explain(s.ref, err)
	}
	if err := ociremote.WriteAttestations(s.digest.Repository, entity, s.options...); err != nil {
		return "", fmt.Errorf("storing the %s attestation: %w", a.Type, image.Explain(s.ref, err))
	}
	return predicateType, nil
}

// replacing drops earlier attestations of one type by one key; other people's stay.
type replacing struct {
	verifier      signature.Verifier
	predicateType string
}

// Replace implements mutate.ReplaceOp.
func (r replacing) Replace(existing oci.Signatures, added oci.Signature) (oci.Signatures, error) {
	old, err := existing.Get()
	if err != nil {
		return nil, err
	}
	kept := slices.DeleteFunc(old, func(a oci.Signature) bool {
		statement, err := statementOf(a)
		if err != nil || statement.PredicateType != r.predicateType {
			return false
		}
		content, err := a.Payload()
		return err == nil && dsse.WrapVerifier(r.verifier).VerifySignature(bytes.NewReader(content), nil) == nil
	})
	return replaced{Signatures: existing, all: append(kept, added)}, nil
}

type replaced struct {
	oci.Signatures
	all []oci.Signature
}

// Get implements oci.Signatures.
func (r replaced) Get() ([]oci.Signature, error) { return r.all, nil }

// statement is what is needed of an in-toto statement.
type statement struct {
	PredicateType string          `json:"predicateType"`
	Predicate     json.RawMessage `json:"predicate"`
}

func statementOf(attached oci.Signature) (statement, error) {
	var parsed statement
	content, err := attached.Payload()
	if err != nil {
		return parsed, err
	}
	var envelope struct {
		Payload string `json:"payload"`
	}
	if err := json.Unmarshal(content, &envelope); err != nil {
		return parsed, err
	}
	body, err := base64.StdEncoding.DecodeString(envelope.Payload)
	if err != nil {
		return parsed, err
	}
	return parsed, json.Unmarshal(body, &parsed)
}

// verifyAttestations checks that every required type is attached, about this digest and signed by the key.
func verifyAttestations(ctx context.Context, s store, check *cosign.CheckOpts, required []string) ([]string, error) {
	if len(required) == 0 {
		return nil, nil
	}
	ofStatements := *check
	ofStatements.ClaimVerifier = cosign.IntotoSubjectClaimVerifier
	ofStatements.Annotations = nil
	good, _, err := cosign.VerifyImageAttestations(ctx, s.digest, &ofStatements)
	var none *cosign.ErrNoMatchingAttestations
	if err != nil && !errors.As(err, &none) {
		return nil, image.Explain(s.ref, err)
	}
	present := map[string]bool{}
	for _, attached := range good {
		if parsed, err := statementOf(attached); err == nil {
			present[parsed.PredicateType] = true
		}
	}
	var found []string
	for _, short := range required {
		predicateType, err := predicateURI(short)
		if err != nil {
			return nil, err
		}
		if !present[predicateType] {
			return nil, fmt.Errorf("%w: it has no %s attestation signed by the key", ErrUnverified, short)
		}
		found = append(found, predicateType)
	}
	return found, nil
}

// VulnerabilityPredicate is the predicate of a Vulnerability attestation: scan is the scanner's own report, in JSON.
func VulnerabilityPredicate(scanner, version, database string, started, finished time.Time, scan []byte) ([]byte, error) {
	if !json.Valid(scan) {
		return nil, fmt.Errorf("%w: the scan report is not JSON", ErrPredicate)
	}
	return json.Marshal(attestation.CosignVulnPredicate{
		Scanner: attestation.Scanner{
			URI:     scanner,
			Version: version,
			DB:      attestation.DB{URI: database},
			Result:  json.RawMessage(scan),
		},
		Metadata: attestation.Metadata{ScanStartedOn: started.UTC(), ScanFinishedOn: finished.UTC()},
	})
}
