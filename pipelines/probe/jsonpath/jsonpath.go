// Package jsonpath finds values in decoded JSON by the part of JSONPath (RFC 9535) that golden cases need: `$`, `.name`,
// `['name']`, `[index]` (negative from the end), `.*` and `[*]`. There are no filters, slices or recursive descent: an
// assertion that needs them says too little about what it asserts.
package jsonpath

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// MaxSteps bounds how many steps a path may have.
const MaxSteps = 64

// Path is a parsed path. The zero Path is `$`, the whole document.
type Path struct {
	text  string
	steps []step
}

type step struct {
	name  string
	index int
	kind  stepKind
}

type stepKind int

const (
	byName stepKind = iota
	byIndex
	every
)

// Found is one value that a path leads to and the path of just this value.
type Found struct {
	// Path is where the value is, with every wildcard replaced: `$.outputs[0][3]`.
	Path string
	// Value is the value as encoding/json decodes it.
	Value any
}

// Parse reads a path. The error names the place where it went wrong.
func Parse(text string) (Path, error) {
	fail := func(at int, what string) (Path, error) {
		return Path{}, fmt.Errorf("JSON path %q: %s at character %d", text, what, at+1)
	}
	if !strings.HasPrefix(text, "$") {
		return fail(0, "it must start with $")
	}
	path := Path{text: text}
	for at := 1; at < len(text); {
		if len(path.steps) == MaxSteps {
			return fail(at, fmt.Sprintf("more than %d steps", MaxSteps))
		}
		var next step
		var width int
		var problem string
		switch text[at] {
		case '.':
			next, width, problem = parseName(text[at+1:])
			width++
		case '[':
			next, width, problem = parseBracket(text[at+1:])
			width++
		default:
			problem = "expected . or ["
		}
		if problem != "" {
			return fail(at, problem)
		}
		path.steps = append(path.steps, next)
		at += width
	}
	return path, nil
}

func parseName(rest string) (step, int, string) {
	end := strings.IndexAny(rest, ".[]'\" ")
	if end < 0 {
		end = len(rest)
	}
	switch name := rest[:end]; name {
	case "":
		return step{}, 0, "a name is missing"
	case "*":
		return step{kind: every}, end, ""
	default:
		return step{name: name}, end, ""
	}
}

func parseBracket(rest string) (step, int, string) {
	if rest != "" && (rest[0] == '\'' || rest[0] == '"') {
		length := strings.IndexByte(rest[1:], rest[0])
		if length < 0 {
			return step{}, 0, "a quote is not closed"
		}
		end := length + 2
		if end >= len(rest) || rest[end] != ']' {
			return step{}, 0, "] is missing"
		}
		return step{name: rest[1 : length+1]}, end + 1, ""
	}
	end := strings.IndexByte(rest, ']')
	if end < 0 {
		return step{}, 0, "] is missing"
	}
	if rest[:end] == "*" {
		return step{kind: every}, end + 1, ""
	}
	index, err := strconv.Atoi(rest[:end])
	if err != nil || rest[0] == '+' {
		return step{}, 0, fmt.Sprintf("%q is not an index", rest[:end])
	}
	return step{kind: byIndex, index: index}, end + 1, ""
}

// String is the path as it was written.
func (p Path) String() string {
	if p.text == "" {
		return "$"
	}
	return p.text
}

// Find returns what the path leads to in a document decoded by encoding/json. A step that leads nowhere is an error that
// names it; a wildcard over an empty array or object finds nothing, which is no error.
func (p Path) Find(document any) ([]Found, error) {
	found := []Found{{Path: "$", Value: document}}
	for _, s := range p.steps {
		var next []Found
		for _, from := range found {
			children, err := s.children(from)
			if err != nil {
				return nil, err
			}
			next = append(next, children...)
		}
		found = next
	}
	return found, nil
}

func (s step) children(from Found) ([]Found, error) {
	switch value := from.Value.(type) {
	case map[string]any:
		switch s.kind {
		case byName:
			child, ok := value[s.name]
			if !ok {
				return nil, fmt.Errorf("%s has no %q", from.Path, s.name)
			}
			return []Found{{Path: Join(from.Path, s.name), Value: child}}, nil
		case every:
			names := make([]string, 0, len(value))
			for name := range value {
				names = append(names, name)
			}
			slices.Sort(names)
			children := make([]Found, 0, len(value))
			for _, name := range names {
				children = append(children, Found{Path: Join(from.Path, name), Value: value[name]})
			}
			return children, nil
		case byIndex:
			return nil, fmt.Errorf("%s is an object, so it has no element %d", from.Path, s.index)
		}
	case []any:
		switch s.kind {
		case byIndex:
			at := s.index
			if at < 0 {
				at += len(value)
			}
			if at < 0 || at >= len(value) {
				return nil, fmt.Errorf("%s has %d elements, so no element %d", from.Path, len(value), s.index)
			}
			return []Found{{Path: Index(from.Path, at), Value: value[at]}}, nil
		case every:
			children := make([]Found, len(value))
			for i, child := range value {
				children[i] = Found{Path: Index(from.Path, i), Value: child}
			}
			return children, nil
		case byName:
			return nil, fmt.Errorf("%s is an array, so it has no %q", from.Path, s.name)
		}
	}
	return nil, fmt.Errorf("%s is neither an object nor an array", from.Path)
}

// Join is the path of an object's member.
func Join(parent, name string) string {
	if name == "" || name == "*" || strings.ContainsAny(name, ".[]'\" ") {
		quote := "'"
		if strings.Contains(name, "'") {
			quote = `"`
		}
		return parent + "[" + quote + name + quote + "]"
	}
	return parent + "." + name
}

// Index is the path of an array's element.
func Index(parent string, index int) string { return parent + "[" + strconv.Itoa(index) + "]" }
