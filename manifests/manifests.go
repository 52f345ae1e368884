// Package manifests holds the Kubernetes objects of a release as templates and renders them.
//
// A template is YAML with Go template actions. Whatever an action prints is printed as JSON, which is YAML: a value,
// whatever it holds, stays one value and cannot add a key or a document. The result is decoded strictly, so that a
// misspelt key is an error here rather than something that the API server drops.
package manifests

import (
	"bufio"
	"bytes"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"text/template"
	"text/template/parse"

	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// Files are the templates as they are in the repository, under kubernetes/.
//
//go:embed kubernetes/*.yaml
var Files embed.FS

// The templates that Render knows.
const (
	Deployment          = "kubernetes/deployment.yaml"
	Service             = "kubernetes/service.yaml"
	ServiceAccount      = "kubernetes/serviceaccount.yaml"
	PodDisruptionBudget = "kubernetes/poddisruptionbudget.yaml"
	RBAC                = "kubernetes/rbac.yaml"
)

// ErrDocument is wrapped when a rendered template is not exactly the object that was asked for.
var ErrDocument = errors.New("manifest")

// Render renders the named template of Files with values and decodes it strictly into object, which is a typed object
// or an apply configuration. It fails when a value that the template uses is missing, when the result holds a key that
// object does not have, or when it is not a single document.
func Render(name string, values, object any) error { return RenderFS(Files, name, values, object) }

// RenderFS is Render with templates of the caller's own.
func RenderFS(files fs.FS, name string, values, object any) error {
	text, err := RenderText(files, name, values)
	if err != nil {
		return err
	}
	documents, err := split(text)
	if err != nil {
		return fmt.Errorf("%w %s: %v", ErrDocument, name, err)
	}
	if len(documents) != 1 {
		return fmt.Errorf("%w %s: %d documents instead of one", ErrDocument, name, len(documents))
	}
	if err := yaml.UnmarshalStrict(documents[0], object); err != nil {
		return fmt.Errorf("%w %s: %v", ErrDocument, name, err)
	}
	return nil
}

// RenderText renders the named template to YAML text, for objects that a person applies, such as RBAC.
func RenderText(files fs.FS, name string, values any) ([]byte, error) {
	source, err := fs.ReadFile(files, name)
	if err != nil {
		return nil, fmt.Errorf("%w %s: %w", ErrDocument, name, err)
	}
	t, err := template.New(name).Option("missingkey=error").Funcs(template.FuncMap{quote: asJSON}).Parse(string(source))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDocument, err)
	}
	quoteAll(t.Tree.Root)
	var out bytes.Buffer
	if err := t.Execute(&out, values); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDocument, err)
	}
	return out.Bytes(), nil
}

// quote names the function that every printing action ends with. It is added here rather than written in the templates,
// where one that was forgotten would be a hole.
const quote = "greenlightQuote"

func asJSON(v any) (string, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return "", err
	}
	return string(escapeNonASCII(b)), nil
}

// escapeNonASCII keeps characters that YAML treats differently from JSON, such as NEL and the byte order mark, out of
// the text. Outside string literals JSON is ASCII, so escaping everywhere is escaping inside literals.
func escapeNonASCII(b []byte) []byte {
	var out bytes.Buffer
	for _, r := range string(b) {
		switch {
		case r >= 0x20 && r < 0x7f:
			out.WriteByte(byte(r))
		case r < 0x10000:
			fmt.Fprintf(&out, `\u%04x`, r)
		default:
			// YAML has no surrogate pairs.
			fmt.Fprintf(&out, `\U%08x`, r)
		}
	}
	return out.Bytes()
}

func quoteAll(node parse.Node) {
	switch n := node.(type) {
	case *parse.ListNode:
		if n == nil {
			return
		}
		for _, child := range n.Nodes {
			quoteAll(child)
		}
	case *parse.ActionNode:
		// A declaration prints nothing.
		if len(n.Pipe.Decl) == 0 {
			n.Pipe.Cmds = append(n.Pipe.Cmds, &parse.CommandNode{
				NodeType: parse.NodeCommand, Pos: n.Pos,
				Args: []parse.Node{parse.NewIdentifier(quote).SetPos(n.Pos)},
			})
		}
	case *parse.IfNode:
		quoteAll(n.List)
		quoteAll(n.ElseList)
	case *parse.RangeNode:
		quoteAll(n.List)
		quoteAll(n.ElseList)
	case *parse.WithNode:
		quoteAll(n.List)
		quoteAll(n.ElseList)
	}
}

// split cuts a stream of YAML documents and drops empty ones.
func split(text []byte) ([][]byte, error) {
	var out [][]byte
	reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	for {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		var content any
		if err := yaml.Unmarshal(document, &content); err != nil {
			return nil, err
		}
		if content != nil {
			out = append(out, document)
		}
	}
}
