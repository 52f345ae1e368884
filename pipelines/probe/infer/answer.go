package infer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/greenlight-ci/greenlight/pipelines/probe/jsonpath"
)

// Answer is what a service answered to one request.
type Answer struct {
	// Status is the HTTP status.
	Status int
	// Document is the body decoded by encoding/json, with numbers as json.Number.
	Document any
	// Size is the length of the body in bytes.
	Size int
	// Device, Colour and Version are the answer's fields of these names, "" where it has none.
	Device, Colour, Version string
	// Elapsed is the time from the call to the last byte of the answer.
	Elapsed time.Duration
	// Reused tells that the connection had served a request before.
	Reused bool
	// Redialled tells that the kept connection had gone before a byte was written, so that a new one was opened.
	Redialled bool
}

// name is a short string member of the answer's top-level object, or "".
func (a Answer) name(member string) string {
	const most = 128
	object, ok := a.Document.(map[string]any)
	if !ok {
		return ""
	}
	text, _ := object[member].(string)
	return oneLine(text, most)
}

// notFiniteMark replaces a bare NaN or Infinity so that the rest of the document can be read. No service sends it by
// accident: a NUL is not allowed raw in a JSON string and nobody escapes one on purpose.
const notFiniteMark = "\x00not finite: "

// Decode reads a JSON document. Where it has a NaN or an infinity, in whatever way serialisers write them (Python's bare
// NaN and Infinity, a number that overflows such as 1e999, the strings "NaN" and "Infinity" of protobuf's JSON, a null
// among numbers), the error is a *Failure of kind NotFinite that names the first place.
func Decode(body []byte) (any, error) {
	document, err := decode(body)
	if err != nil {
		replaced, any := markNotFinite(body)
		if !any {
			return nil, &Failure{Kind: NotJSON, Reason: fmt.Sprintf("the body is not JSON: %v", err), Err: err}
		}
		if document, err = decode(replaced); err != nil {
			return nil, &Failure{Kind: NotFinite, Reason: "the body has a bare NaN or Infinity, which is not JSON", Err: err}
		}
	}
	if place, what := findNotFinite("$", document, false); what != "" {
		return nil, failure(NotFinite, "%s is %s", place, what)
	}
	return document, nil
}

func decode(body []byte) (any, error) {
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.UseNumber()
	var document any
	if err := decoder.Decode(&document); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, errors.New("it is empty")
		}
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, errors.New("it ends in the middle")
		}
		return nil, err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the JSON value")
	}
	return document, nil
}

// markNotFinite replaces bare NaN and Infinity tokens outside strings by marked strings.
func markNotFinite(body []byte) ([]byte, bool) {
	var out bytes.Buffer
	found := false
	for at := 0; at < len(body); {
		c := body[at]
		if c == '"' {
			end := at + 1
			for end < len(body) && body[end] != '"' {
				if body[end] == '\\' {
					end++
				}
				end++
			}
			end = min(end+1, len(body))
			out.Write(body[at:end])
			at = end
			continue
		}
		word := wordAt(body[at:])
		if name := notFiniteName(word); name != "" {
			fmt.Fprintf(&out, `"\u0000not finite: %s"`, name)
			found = true
			at += len(word)
			continue
		}
		width := max(1, len(word))
		out.Write(body[at : at+width])
		at += width
	}
	return out.Bytes(), found
}

func wordAt(rest []byte) string {
	end := 0
	for end < len(rest) && end < 16 {
		c := rest[end]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (end != 0 || c != '-' && c != '+') {
			break
		}
		end++
	}
	return string(rest[:end])
}

func notFiniteName(word string) string {
	switch strings.ToLower(word) {
	case "nan", "-nan", "+nan":
		return "NaN"
	case "infinity", "inf", "+infinity", "+inf":
		return "Infinity"
	case "-infinity", "-inf":
		return "-Infinity"
	}
	return ""
}

// findNotFinite returns the path and the description of the first value that is no finite number where one should be.
func findNotFinite(place string, value any, amongNumbers bool) (string, string) {
	switch value := value.(type) {
	case nil:
		if amongNumbers {
			return place, "null among numbers, which is how some serialisers write NaN"
		}
	case json.Number:
		if number, err := strconv.ParseFloat(string(value), 64); err != nil || math.IsInf(number, 0) {
			return place, fmt.Sprintf("%s, which is beyond a 64-bit float (infinite)", oneLine(string(value), 30))
		}
	case string:
		if rest, ok := strings.CutPrefix(value, notFiniteMark); ok {
			return place, rest
		}
		if value == "NaN" || value == "Infinity" || value == "-Infinity" {
			return place, value
		}
	case []any:
		numbers := false
		for _, element := range value {
			if _, ok := element.(json.Number); ok {
				numbers = true
				break
			}
		}
		for i, element := range value {
			if where, what := findNotFinite(jsonpath.Index(place, i), element, numbers); what != "" {
				return where, what
			}
		}
	case map[string]any:
		first, description := "", ""
		for name, member := range value {
			// Members come in random order; the smallest path keeps the message the same from run to run.
			if where, what := findNotFinite(jsonpath.Join(place, name), member, false); what != "" && (first == "" || where < first) {
				first, description = where, what
			}
		}
		return first, description
	}
	return "", ""
}

// DefaultOutputs is where an answer's outputs are.
const DefaultOutputs = "$.outputs"

// Outputs returns the finite numbers below path in document order. An answer that has nothing there, an empty array, or
// anything but numbers gets a *Failure of kind NoOutputs.
func Outputs(document any, path jsonpath.Path) ([]float64, error) {
	found, err := path.Find(document)
	if err != nil {
		return nil, failure(NoOutputs, "the answer has no outputs: %v", err)
	}
	var numbers []float64
	for _, f := range found {
		if numbers, err = appendNumbers(numbers, f.Path, f.Value); err != nil {
			return nil, err
		}
	}
	if len(numbers) == 0 {
		return nil, failure(NoOutputs, "the answer has no outputs: %s is empty", path)
	}
	return numbers, nil
}

func appendNumbers(numbers []float64, place string, value any) ([]float64, error) {
	switch value := value.(type) {
	case json.Number:
		number, err := value.Float64()
		if err != nil {
			return nil, failure(NotFinite, "%s is %s, which is beyond a 64-bit float", place, value)
		}
		return append(numbers, number), nil
	case []any:
		var err error
		for i, element := range value {
			if numbers, err = appendNumbers(numbers, jsonpath.Index(place, i), element); err != nil {
				return nil, err
			}
		}
		return numbers, nil
	default:
		return nil, failure(NoOutputs, "the answer's outputs are not numbers: %s is %s", place, Describe(value))
	}
}

// Describe names a decoded JSON value for a message.
func Describe(value any) string {
	switch value := value.(type) {
	case nil:
		return "null"
	case map[string]any:
		return "an object"
	case []any:
		return fmt.Sprintf("an array of %d", len(value))
	case string:
		return strconv.Quote(oneLine(value, 60))
	default:
		return fmt.Sprint(value)
	}
}
