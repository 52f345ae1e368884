package jsonpath

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
)

const document = `{"outputs":[[0.1,0.9],[0.8,0.2]],"a b":{"it's":1},"classes":[],"":2}`

func TestFind(t *testing.T) {
	var decoded any
	require.NoError(t, json.Unmarshal([]byte(document), &decoded))
	for _, c := range []struct {
		path   string
		places []string
		values []any
	}{
		{"$.outputs[0][1]", []string{"$.outputs[0][1]"}, []any{0.9}},
		{"$.outputs[-1][-2]", []string{"$.outputs[1][0]"}, []any{0.8}},
		{"$.outputs[*][0]", []string{"$.outputs[0][0]", "$.outputs[1][0]"}, []any{0.1, 0.8}},
		{"$['a b'][\"it's\"]", []string{`$['a b']["it's"]`}, []any{1.0}},
		{"$['a b'].*", []string{`$['a b']["it's"]`}, []any{1.0}},
		{"$.classes[*]", []string{}, []any{}},
		{"$['']", []string{"$['']"}, []any{2.0}},
	} {
		t.Run(c.path, func(t *testing.T) {
			path, err := Parse(c.path)
			require.NoError(t, err)
			found, err := path.Find(decoded)
			require.NoError(t, err)
			places, values := []string{}, []any{}
			for _, f := range found {
				places, values = append(places, f.Path), append(values, f.Value)
			}
			require.Equal(t, c.places, places)
			require.Equal(t, c.values, values)
		})
	}
}

func TestFindNothing(t *testing.T) {
	var decoded any
	require.NoError(t, json.Unmarshal([]byte(document), &decoded))
	for path, reason := range map[string]string{
		"$.nothing":          `$ has no "nothing"`,
		"$.outputs[2]":       "$.outputs has 2 elements, so no element 2",
		"$.outputs[-3]":      "no element -3",
		"$.outputs.x":        `$.outputs is an array, so it has no "x"`,
		"$[0]":               "$ is an object, so it has no element 0",
		"$.outputs[0][0].x":  "$.outputs[0][0] is neither an object nor an array",
		"$.outputs[0][0][*]": "$.outputs[0][0] is neither an object nor an array",
	} {
		parsed, err := Parse(path)
		require.NoError(t, err)
		_, err = parsed.Find(decoded)
		require.ErrorContains(t, err, reason, path)
	}
}

func TestParseErrors(t *testing.T) {
	for path, reason := range map[string]string{
		"":            "must start with $",
		"outputs":     "must start with $",
		"$outputs":    "expected . or [",
		"$.":          "a name is missing",
		"$..a":        "a name is missing",
		"$.a[":        "] is missing",
		"$.a[1":       "] is missing",
		"$.a['b]":     "a quote is not closed",
		"$.a['b'":     "] is missing",
		"$.a[x]":      `"x" is not an index`,
		"$.a[+1]":     `"+1" is not an index`,
		"$.a[1:2]":    `"1:2" is not an index`,
		"$.a[?(@.b)]": "is not an index",
	} {
		_, err := Parse(path)
		require.ErrorContains(t, err, reason, path)
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{"$", "$.a[0]['b'][*].*", "$[\"\"]", "$.a[-1]", "$[", "$..", "$.a[99999999999999999999]"} {
		f.Add(seed)
	}
	var decoded any
	require.NoError(f, json.Unmarshal([]byte(document), &decoded))
	f.Fuzz(func(t *testing.T, text string) {
		path, err := Parse(text)
		if err != nil {
			return
		}
		require.Equal(t, text, path.String())
		found, err := path.Find(decoded)
		if err != nil {
			return
		}
		for _, one := range found {
			// A found value's own path leads to just this value.
			again, err := Parse(one.Path)
			require.NoError(t, err)
			same, err := again.Find(decoded)
			require.NoError(t, err)
			require.Equal(t, []Found{one}, same)
		}
	})
}
