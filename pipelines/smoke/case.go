package smoke

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/greenlight-ci/greenlight/pipelines/probe/infer"
	"github.com/greenlight-ci/greenlight/pipelines/probe/jsonpath"
)

const (
	// MaxCaseBytes is the largest case file.
	MaxCaseBytes = 1 << 20
	// MaxCases is the largest number of cases.
	MaxCases = 1000
)

// Case is one golden request and what its answer must be.
type Case struct {
	// Name names the case in messages. Default: the file's name without .json.
	Name string `json:"name,omitempty"`
	// Request is sent as it is.
	Request infer.Request `json:"request"`
	// Expect is what the answer is compared with.
	Expect Expectation `json:"expect"`
}

// Expectation is what a golden answer looks like. It must say something beyond the status.
type Expectation struct {
	// Status is the HTTP status. Default 200.
	Status int `json:"status,omitempty"`
	// Values are assertions on single values.
	Values []Value `json:"values,omitempty"`
	// Shape are assertions on nested arrays.
	Shape []Shape `json:"shape,omitempty"`
}

// Value asserts what a JSON path leads to. Where a path with a wildcard leads to several values, all of them must agree; one
// that leads to none fails. Exactly one of Equals, Minimum with or without Maximum, or Maximum is given.
type Value struct {
	// Path is a JSON path such as $.outputs[0][3].
	Path string `json:"path"`
	// Equals is any JSON value. Numbers in it, at any depth, are compared within the tolerance.
	Equals json.RawMessage `json:"equals,omitempty"`
	// Minimum and Maximum bound a number.
	Minimum *float64 `json:"minimum,omitempty"`
	Maximum *float64 `json:"maximum,omitempty"`
	// Absolute and Relative are the tolerance: |got - want| <= max(Absolute, Relative·|want|). Default 0: equal.
	Absolute float64 `json:"absolute,omitempty"`
	Relative float64 `json:"relative,omitempty"`
}

// Shape asserts the dimensions of nested arrays.
type Shape struct {
	// Path is a JSON path to an array.
	Path string `json:"path"`
	// Dims are the lengths from the outside in; -1 is any length. Every element must have the same, and the innermost must not be arrays.
	Dims []int `json:"dims"`
}

// Answers says whether the case expects a good answer. One that does not shows how the service refuses.
func (c Case) Answers() bool { return c.Expect.Status == 0 || c.Expect.Status == 200 }

// ParseCase reads and checks one case. Unknown keys are errors: a misspelt assertion must not pass.
func ParseCase(content []byte) (Case, error) {
	if len(content) > MaxCaseBytes {
		return Case{}, fmt.Errorf("%d bytes, more than %d", len(content), MaxCaseBytes)
	}
	decoder := json.NewDecoder(bytes.NewReader(content))
	decoder.DisallowUnknownFields()
	var c Case
	if err := decoder.Decode(&c); err != nil {
		if errors.Is(err, io.EOF) {
			return Case{}, errors.New("the file is empty")
		}
		return Case{}, fmt.Errorf("not a case: %w", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return Case{}, errors.New("something follows the case: one case per file")
	}
	return c, c.check()
}

func (c Case) check() error {
	if c.Expect.Status != 0 && (c.Expect.Status < 100 || c.Expect.Status > 599) {
		return fmt.Errorf("expect.status %d is no HTTP status", c.Expect.Status)
	}
	if len(c.Expect.Values) == 0 && len(c.Expect.Shape) == 0 && c.Answers() {
		return errors.New("expect has neither values nor shape, so any answer would pass")
	}
	if path := c.Request.Path; path != "" && !strings.HasPrefix(path, "/") {
		return fmt.Errorf("request.path %q must start with /", path)
	}
	for i, value := range c.Expect.Values {
		if err := value.check(); err != nil {
			return fmt.Errorf("expect.values[%d]: %w", i, err)
		}
	}
	for i, shape := range c.Expect.Shape {
		if _, err := jsonpath.Parse(shape.Path); err != nil {
			return fmt.Errorf("expect.shape[%d]: %w", i, err)
		}
		if len(shape.Dims) == 0 || slices.Min(shape.Dims) < -1 {
			return fmt.Errorf("expect.shape[%d]: dims must be lengths such as [1, 10], -1 for any", i)
		}
	}
	return nil
}

func (v Value) check() error {
	if _, err := jsonpath.Parse(v.Path); err != nil {
		return err
	}
	bounds := v.Minimum != nil || v.Maximum != nil
	switch {
	case len(v.Equals) == 0 && !bounds:
		return errors.New("give equals, minimum or maximum")
	case len(v.Equals) > 0 && bounds:
		return errors.New("give equals, or minimum and maximum, not both")
	case !(v.Absolute >= 0) || !(v.Relative >= 0) || math.IsInf(v.Absolute, 0) || math.IsInf(v.Relative, 0):
		return errors.New("absolute and relative must be numbers of at least 0")
	}
	if len(v.Equals) > 0 {
		if _, err := infer.Decode(v.Equals); err != nil {
			return fmt.Errorf("equals: %w", err)
		}
	}
	return nil
}

// ReadCases reads every *.json file of a directory, not of directories in it, in the order of their names. No file is an error.
func ReadCases(dir string) ([]Case, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("reading the golden cases: %w", err)
	}
	var cases []Case
	for _, entry := range entries {
		// A mounted ConfigMap has its files as links beside directories whose names start with "..".
		if !strings.HasSuffix(entry.Name(), ".json") || strings.HasPrefix(entry.Name(), ".") {
			continue
		}
		path := filepath.Join(dir, entry.Name())
		if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
			if err == nil {
				err = fs.ErrInvalid
			}
			return nil, fmt.Errorf("reading the golden case %s: %w", path, err)
		}
		if len(cases) == MaxCases {
			return nil, fmt.Errorf("%s has more than %d golden cases", dir, MaxCases)
		}
		c, err := readCase(path)
		if err != nil {
			return nil, fmt.Errorf("golden case %s: %w", path, err)
		}
		if c.Name == "" {
			c.Name = strings.TrimSuffix(entry.Name(), ".json")
		}
		cases = append(cases, c)
	}
	if len(cases) == 0 {
		return nil, fmt.Errorf("%s has no golden case (*.json): an empty set would let any service pass", dir)
	}
	return cases, nil
}

func readCase(path string) (Case, error) {
	file, err := os.Open(path)
	if err != nil {
		return Case{}, err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, MaxCaseBytes+1))
	if err != nil {
		return Case{}, err
	}
	return ParseCase(content)
}
