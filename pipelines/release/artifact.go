package release

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/greenlight-ci/greenlight/pipelines/image"
	"github.com/greenlight-ci/greenlight/pipelines/report"
	"github.com/greenlight-ci/greenlight/pipelines/scangate"
	"github.com/greenlight-ci/greenlight/pipelines/sign"
)

// build checks that what the build claims to have pushed is in the registry. The image itself was built by the front
// door, after a preflight of its own.
func (r *run) build(ctx context.Context) (result, error) {
	ref, err := image.ParsePinned(r.Image)
	if err != nil {
		return result{}, err
	}
	if _, err := r.Registry.Resolve(ctx, ref); err != nil {
		return result{}, fmt.Errorf("looking for the image: %w", err)
	}
	if r.BuildRecord == "" {
		return result{detail: ref.Pinned()}, nil
	}
	data, err := os.ReadFile(r.BuildRecord)
	if err != nil {
		return result{}, usage(fmt.Errorf("reading the build record: %w", err))
	}
	var record struct {
		Digest    string    `json:"digest"`
		Reused    bool      `json:"reused"`
		StartedAt time.Time `json:"startedAt"`
		Seconds   float64   `json:"seconds"`
	}
	if err := json.Unmarshal(data, &record); err != nil {
		return result{}, usage(fmt.Errorf("reading the build record %s: %w", r.BuildRecord, err))
	}
	if record.Digest != ref.Digest {
		return result{}, usage(fmt.Errorf("the build record %s is of %s, not of %s", r.BuildRecord, record.Digest, ref.Digest))
	}
	detail := ref.Pinned()
	if record.Reused {
		detail += ", built before"
	}
	return result{detail: detail, startedAt: record.StartedAt.UTC(), seconds: record.Seconds}, nil
}

// scan applies the thresholds to what greenlight-scan found.
func (r *run) scan(ctx context.Context) (result, error) {
	found, err := scangate.Run(ctx, scangate.Options{
		ReportFile: filepath.Join(r.ScanDir, "scan.json"), Digest: r.report.Digest,
		FailSeverities: r.Config.Scan.Fail, FixableOnly: r.Config.Scan.FixableOnly,
	})
	no := errors.Is(err, scangate.ErrRejected)
	if err != nil && !no {
		return result{}, err
	}
	c := found.Counts
	r.report.Scan = &report.Scan{Critical: c.Critical, High: c.High, Medium: c.Medium, Low: c.Low, Ignored: c.Ignored}
	if no {
		return result{}, rejected(err)
	}
	return result{detail: found.Reason, startedAt: found.ScannedAt.UTC(), seconds: found.ScanSeconds}, nil
}

func (r *run) sign(ctx context.Context) (result, error) {
	signed, err := sign.Run(ctx, sign.Options{
		Reference: r.Image, Key: r.SigningKey, Registry: r.Registry,
		Annotations:  map[string]string{"version": r.Version},
		Attestations: []sign.Attestation{{Type: sign.CycloneDX, File: filepath.Join(r.ScanDir, "sbom.cdx.json")}},
	})
	if err != nil {
		return result{}, err
	}
	detail := "key " + shortKey(signed.KeyID)
	if signed.Existed {
		detail += ", signed before"
	}
	return result{detail: detail}, nil
}

func (r *run) verify(ctx context.Context) (result, error) {
	verified, err := sign.Verify(ctx, sign.VerifyOptions{
		Reference: r.Image, Key: r.PublicKey, Registry: r.Registry,
		Annotations:  map[string]string{"version": r.Version},
		Attestations: []string{sign.CycloneDX},
	})
	if errors.Is(err, sign.ErrUnverified) {
		return result{}, rejected(err)
	}
	if err != nil {
		return result{}, err
	}
	return result{detail: "key " + shortKey(verified.KeyID) + ", SBOM attested"}, nil
}

// shortKey is enough of a key's fingerprint to tell it from another.
func shortKey(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(12, len(id))]
}

// rejected marks a stage's no.
func rejected(err error) error { return &ending{kind: ErrRejected, cause: err} }
