package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
)

// ErrPins is wrapped by errors about the file of base pins.
var ErrPins = errors.New("base image pins")

// Pins is images/bases.json: the base images that a service may be built on, each pinned by digest.
type Pins struct {
	// Default names the base that is used when none is asked for.
	Default string `json:"default"`
	// Bases are the bases by name.
	Bases map[string]Base `json:"bases"`
}

// Base is one base image and what it contains. Fields that do not apply are empty (null in the file).
type Base struct {
	// Reference is the image, pinned by digest; empty for a base that is built on the spot.
	Reference string `json:"reference"`
	// BuiltBy names what builds a base that has no reference.
	BuiltBy string `json:"builtBy,omitempty"`
	// Device is where it computes: cuda or cpu.
	Device string `json:"device"`
	// Python, Torch, CUDA and CuDNN are the versions in it.
	Python string `json:"python"`
	Torch  string `json:"torch"`
	CUDA   string `json:"cuda"`
	CuDNN  string `json:"cudnn"`
	// Refresh is the command that prints the present digest of its tag.
	Refresh string `json:"refresh,omitempty"`
}

// ReadPins reads and checks a pins file. Errors wrap ErrPins and name the file.
func ReadPins(path string) (Pins, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Pins{}, fmt.Errorf("%w: %w", ErrPins, err)
	}
	pins, err := ParsePins(data)
	if err != nil {
		return Pins{}, fmt.Errorf("%w: %s: %w", ErrPins, path, err)
	}
	return pins, nil
}

// ParsePins is ReadPins of data. Every reference in the file must be pinned; errors name the base.
func ParsePins(data []byte) (Pins, error) {
	var pins Pins
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&pins); err != nil {
		return Pins{}, err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return Pins{}, errors.New("something follows the pins")
	}
	for _, name := range pins.names() {
		base := pins.Bases[name]
		if base.Reference == "" && base.BuiltBy == "" {
			return Pins{}, fmt.Errorf("base %q has neither reference nor builtBy", name)
		}
		if base.Reference == "" {
			continue
		}
		if _, err := ParsePinned(base.Reference); err != nil {
			return Pins{}, fmt.Errorf("base %q: %w", name, err)
		}
	}
	if _, known := pins.Bases[pins.Default]; !known {
		return Pins{}, fmt.Errorf("default %q is none of the bases: %s", pins.Default, strings.Join(pins.names(), ", "))
	}
	return pins, nil
}

// Base is the reference of the named base, the default for "". A base without a reference is an error: the pin is never
// guessed.
func (p Pins) Base(name string) (Reference, error) {
	if name == "" {
		name = p.Default
	}
	base, known := p.Bases[name]
	if !known {
		return Reference{}, fmt.Errorf("%w: no base is called %q; known: %s", ErrPins, name, strings.Join(p.names(), ", "))
	}
	if base.Reference == "" {
		return Reference{}, fmt.Errorf("%w: base %q is built by %s and has no pin; pass its reference with its digest", ErrPins, name, base.BuiltBy)
	}
	return ParsePinned(base.Reference)
}

func (p Pins) names() []string { return slices.Sorted(maps.Keys(p.Bases)) }
