package smoke

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/greenlight-ci/greenlight/pipelines/probe/infer"
	"github.com/greenlight-ci/greenlight/pipelines/probe/jsonpath"
)

// differences says how an answer's document departs from the expectation, one line each, at most a few.
func (e Expectation) differences(document any) []string {
	const most = 5
	var found []string
	for _, value := range e.Values {
		if difference := value.difference(document); difference != "" {
			found = append(found, difference)
		}
	}
	for _, shape := range e.Shape {
		if difference := shape.difference(document); difference != "" {
			found = append(found, difference)
		}
	}
	if len(found) > most {
		found = append(found[:most], fmt.Sprintf("and %d more", len(found)-most))
	}
	return found
}

func find(text string, document any) ([]jsonpath.Found, error) {
	path, err := jsonpath.Parse(text)
	if err != nil {
		return nil, err
	}
	found, err := path.Find(document)
	if err == nil && len(found) == 0 {
		err = fmt.Errorf("%s leads to no value", path)
	}
	return found, err
}

func (v Value) difference(document any) string {
	found, err := find(v.Path, document)
	if err != nil {
		return err.Error()
	}
	var want any
	if len(v.Equals) > 0 {
		if want, err = infer.Decode(v.Equals); err != nil {
			return err.Error()
		}
	}
	for _, f := range found {
		var difference string
		if len(v.Equals) > 0 {
			difference = v.compare(f.Path, f.Value, want)
		} else {
			difference = v.bound(f.Path, f.Value)
		}
		if difference != "" {
			return difference
		}
	}
	return ""
}

func (v Value) bound(place string, got any) string {
	number, ok := got.(json.Number)
	if !ok {
		return fmt.Sprintf("%s is %s, not a number", place, infer.Describe(got))
	}
	value, err := number.Float64()
	switch {
	case err != nil:
		return fmt.Sprintf("%s is %s, beyond a 64-bit float", place, number)
	case v.Minimum != nil && !(value >= *v.Minimum):
		return fmt.Sprintf("%s is %s, below %g", place, number, *v.Minimum)
	case v.Maximum != nil && !(value <= *v.Maximum):
		return fmt.Sprintf("%s is %s, above %g", place, number, *v.Maximum)
	}
	return ""
}

// compare returns the first difference between two decoded JSON values.
func (v Value) compare(place string, got, want any) string {
	switch want := want.(type) {
	case json.Number:
		return v.compareNumbers(place, got, want)
	case []any:
		list, ok := got.([]any)
		if !ok || len(list) != len(want) {
			return fmt.Sprintf("%s is %s instead of %s", place, infer.Describe(got), infer.Describe(want))
		}
		for i := range want {
			if difference := v.compare(jsonpath.Index(place, i), list[i], want[i]); difference != "" {
				return difference
			}
		}
		return ""
	case map[string]any:
		object, ok := got.(map[string]any)
		if !ok {
			return fmt.Sprintf("%s is %s instead of an object", place, infer.Describe(got))
		}
		for _, name := range slices.Sorted(maps.Keys(want)) {
			member, ok := object[name]
			if !ok {
				return fmt.Sprintf("%s has no %q", place, name)
			}
			if difference := v.compare(jsonpath.Join(place, name), member, want[name]); difference != "" {
				return difference
			}
		}
		for _, name := range slices.Sorted(maps.Keys(object)) {
			if _, ok := want[name]; !ok {
				return fmt.Sprintf("%s has an unexpected %q", place, name)
			}
		}
		return ""
	default: // string, bool, nil: comparable, unlike the two above
		switch got.(type) {
		case []any, map[string]any:
		default:
			if got == want {
				return ""
			}
		}
		return fmt.Sprintf("%s is %s instead of %s", place, infer.Describe(got), infer.Describe(want))
	}
}

func (v Value) compareNumbers(place string, got any, want json.Number) string {
	number, ok := got.(json.Number)
	if !ok {
		return fmt.Sprintf("%s is %s instead of the number %s", place, infer.Describe(got), want)
	}
	g, errGot := number.Float64()
	w, errWant := want.Float64()
	if errGot != nil || errWant != nil {
		return fmt.Sprintf("%s is %s instead of %s", place, number, want)
	}
	if within(g, w, v.Absolute, v.Relative) {
		return ""
	}
	if v.Absolute == 0 && v.Relative == 0 {
		return fmt.Sprintf("%s is %s instead of %s", place, number, want)
	}
	return fmt.Sprintf("%s is %s instead of %s (off by %.3g, allowed %.3g)", place, number, want, math.Abs(g-w), max(v.Absolute, v.Relative*math.Abs(w)))
}

// within tells whether got is near want. It is false for NaN and infinities.
func within(got, want, absolute, relative float64) bool {
	return math.Abs(got-want) <= max(absolute, relative*math.Abs(want)) && !math.IsInf(got, 0)
}

func (s Shape) difference(document any) string {
	found, err := find(s.Path, document)
	if err != nil {
		return err.Error()
	}
	for _, f := range found {
		if difference := checkDims(f.Path, f.Value, s.Dims); difference != "" {
			return difference
		}
	}
	return ""
}

func checkDims(place string, value any, dims []int) string {
	list, isList := value.([]any)
	if len(dims) == 0 {
		if isList {
			return fmt.Sprintf("%s is an array of %d: one dimension too many", place, len(list))
		}
		return ""
	}
	if !isList {
		return fmt.Sprintf("%s is %s: a dimension is missing", place, infer.Describe(value))
	}
	if dims[0] != -1 && len(list) != dims[0] {
		return fmt.Sprintf("%s has %d elements instead of %d", place, len(list), dims[0])
	}
	for i, element := range list {
		if difference := checkDims(jsonpath.Index(place, i), element, dims[1:]); difference != "" {
			return difference
		}
	}
	return ""
}
