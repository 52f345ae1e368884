package config

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Duration is a time.Duration that is written as 30s, 5m or 1h30m.
type Duration time.Duration

// UnmarshalYAML reads a Go duration; a bare number is refused, since its unit would be a guess.
func (d *Duration) UnmarshalYAML(node *yaml.Node) error {
	v, err := time.ParseDuration(node.Value)
	if err != nil {
		return fmt.Errorf("line %d: %q is not a duration; write it like 30s, 5m or 1h30m", node.Line, node.Value)
	}
	if v < 0 {
		return fmt.Errorf("line %d: %q is negative", node.Line, node.Value)
	}
	*d = Duration(v)
	return nil
}

// MarshalJSON writes the duration as it is written in the config.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(d).String()) }

// Std is the duration as the standard library's type.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// Percent is a share, written as 3% or 0.03, kept as a fraction.
type Percent float64

// UnmarshalYAML reads 3% or 0.03. A number above 1 without % is refused, since 3 could mean either.
func (p *Percent) UnmarshalYAML(node *yaml.Node) error {
	text, isPercent := strings.CutSuffix(strings.TrimSpace(node.Value), "%")
	v, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
	// The comparison is written so that NaN is refused too.
	if err != nil || !(v >= 0 && v <= 1e6) {
		return fmt.Errorf("line %d: %q is not a percentage; write it like 3%% or 0.03", node.Line, node.Value)
	}
	if isPercent {
		v /= 100
	} else if v > 1 {
		return fmt.Errorf("line %d: %q is ambiguous; write %s%% or a fraction up to 1", node.Line, node.Value, node.Value)
	}
	*p = Percent(v)
	return nil
}
