package smoke

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/greenlight-ci/greenlight/pipelines/probe/infer"
)

func request() infer.Request { return infer.Request{Body: json.RawMessage(`{"inputs":[[0]]}`)} }

func TestParseCaseErrors(t *testing.T) {
	for _, c := range []struct{ name, content, reason string }{
		{"empty", "", "the file is empty"},
		{"no JSON", "hello", "not a case"},
		{"list", "[]", "not a case"},
		{"two", `{"expect":{"values":[{"path":"$","equals":1}]}} {}`, "one case per file"},
		{"unknown key", `{"expects":{}}`, `unknown field "expects"`},
		{"nothing expected", `{"request":{"body":{}}}`, "any answer would pass"},
		{"bad status", `{"expect":{"status":99}}`, "no HTTP status"},
		{"bad path", `{"expect":{"values":[{"path":"x","equals":1}]}}`, "expect.values[0]: JSON path"},
		{"no assertion", `{"expect":{"values":[{"path":"$.x"}]}}`, "give equals"},
		{"both", `{"expect":{"values":[{"path":"$.x","equals":1,"minimum":0}]}}`, "not both"},
		{"negative tolerance", `{"expect":{"values":[{"path":"$.x","equals":1,"absolute":-1}]}}`, "at least 0"},
		{"overflowing golden value", `{"expect":{"values":[{"path":"$.x","equals":1e999}]}}`, "equals: $ is 1e999"},
		{"NaN golden value", `{"expect":{"values":[{"path":"$.x","equals":NaN}]}}`, "not a case"},
		{"no dims", `{"expect":{"shape":[{"path":"$.x"}]}}`, "dims must be"},
		{"bad dims", `{"expect":{"shape":[{"path":"$.x","dims":[-2]}]}}`, "dims must be"},
		{"relative request path", `{"request":{"path":"infer"},"expect":{"status":404}}`, "must start with /"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ParseCase([]byte(c.content))
			require.ErrorContains(t, err, c.reason)
		})
	}
}

func TestDifferences(t *testing.T) {
	document := `{"outputs":[[0.1,0.9],[0.8,0.2]],"classes":[1,0],"label":"cat","ok":true,"none":null,"nested":{"a":[1,2]}}`
	for _, c := range []struct{ name, expect, difference string }{
		{"exact", `{"values":[{"path":"$.label","equals":"cat"},{"path":"$.ok","equals":true},{"path":"$.none","equals":null}]}`, ""},
		{"absolute", `{"values":[{"path":"$.outputs[0]","equals":[0.1005,0.9],"absolute":0.001}]}`, ""},
		{"relative", `{"values":[{"path":"$.outputs[1][0]","equals":0.81,"relative":0.02}]}`, ""},
		{"outside", `{"values":[{"path":"$.outputs[1][0]","equals":0.81,"relative":0.001}]}`, "$.outputs[1][0] is 0.8 instead of 0.81 (off by 0.01, allowed 0.00081)"},
		{"wildcard bounds", `{"values":[{"path":"$.outputs[*][*]","minimum":0,"maximum":1}]}`, ""},
		{"wildcard outside", `{"values":[{"path":"$.outputs[*][*]","maximum":0.85}]}`, "$.outputs[0][1] is 0.9, above 0.85"},
		{"below", `{"values":[{"path":"$.classes[1]","minimum":1}]}`, "$.classes[1] is 0, below 1"},
		{"nested", `{"values":[{"path":"$.nested","equals":{"a":[1,3]}}]}`, "$.nested.a[1] is 2 instead of 3"},
		{"missing member", `{"values":[{"path":"$.nested","equals":{"a":[1,2],"b":1}}]}`, `$.nested has no "b"`},
		{"extra member", `{"values":[{"path":"$.nested","equals":{}}]}`, `$.nested has an unexpected "a"`},
		{"other type", `{"values":[{"path":"$.label","equals":1}]}`, `$.label is "cat" instead of the number 1`},
		{"text for null", `{"values":[{"path":"$.outputs","equals":null}]}`, "$.outputs is an array of 2 instead of null"},
		{"length", `{"values":[{"path":"$.classes","equals":[1]}]}`, "$.classes is an array of 2 instead of an array of 1"},
		{"no such", `{"values":[{"path":"$.scores","equals":1}]}`, `$ has no "scores"`},
		{"bound on text", `{"values":[{"path":"$.label","minimum":1}]}`, `$.label is "cat", not a number`},
		{"shape", `{"shape":[{"path":"$.outputs","dims":[2,2]},{"path":"$.outputs","dims":[-1,2]}]}`, ""},
		{"rows", `{"shape":[{"path":"$.outputs","dims":[1,2]}]}`, "$.outputs has 2 elements instead of 1"},
		{"columns", `{"shape":[{"path":"$.outputs","dims":[2,3]}]}`, "$.outputs[0] has 2 elements instead of 3"},
		{"too few dims", `{"shape":[{"path":"$.outputs","dims":[2]}]}`, "$.outputs[0] is an array of 2: one dimension too many"},
		{"too many dims", `{"shape":[{"path":"$.classes","dims":[2,1]}]}`, "$.classes[0] is 1: a dimension is missing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			parsed, err := ParseCase([]byte(`{"expect":` + c.expect + `}`))
			require.NoError(t, err)
			decoded, err := infer.Decode([]byte(document))
			require.NoError(t, err)
			differences := parsed.Expect.differences(decoded)
			if c.difference == "" {
				require.Empty(t, differences)
				return
			}
			require.Equal(t, []string{c.difference}, differences)
		})
	}
}

func FuzzParseCase(f *testing.F) {
	for _, seed := range []string{
		`{"name":"n","request":{"method":"POST","path":"/v1/infer","body":{"inputs":[[0]]}},"expect":{"status":200,"values":[{"path":"$.outputs[0][3]","equals":0.98,"absolute":1e-3}],"shape":[{"path":"$.outputs","dims":[1,10]}]}}`,
		`{}`, `{"expect":{"values":[{"path":"$[*]","equals":{"a":[null,1e308]}}]}}`, `{"expect":{"shape":[{"path":"$","dims":[-1]}]}}`,
	} {
		f.Add([]byte(seed), []byte(`{"outputs":[[0.1]]}`))
	}
	f.Fuzz(func(t *testing.T, content, answer []byte) {
		parsed, err := ParseCase(content)
		if err != nil {
			return
		}
		document, err := infer.Decode(answer)
		if err != nil {
			return
		}
		require.LessOrEqual(t, len(parsed.Expect.differences(document)), 6)
	})
}
