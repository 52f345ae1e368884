package manifests

import (
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"
)

func files(template string) fstest.MapFS {
	return fstest.MapFS{"t.yaml": {Data: []byte(template)}}
}

func TestRenderKeepsEveryValueOneValue(t *testing.T) {
	values := []string{
		"plain", "", "yes", "0x10", "1e3", "null", "~", "a: b", "{{ .X }}", "- item", "# comment", "'", `"`, `\`, "&a", "*a", "!!int 3",
		"x\nkind: Pod", "x\r\ndata:\n  y: z", "x\n---\nkind: Secret", "\"\nkind: Pod\n\"", "line\u2028separator", "next\u0085line",
		"\ufeffmark", "tab\there", "\x00null", "\x7fdelete", "ünïcödé", "𝒳 beyond", "invalid \xff utf8", "</script>", strings.Repeat("x", 5000),
	}
	template := "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{ .Name }}\ndata:\n  key: {{ .Value }}\n  {{- range .List }}\n  {{ .Key }}: {{ .Value }}\n  {{- end }}\n"
	for _, value := range values {
		t.Run(strings.ToValidUTF8(value[:min(len(value), 20)], "?"), func(t *testing.T) {
			var got corev1.ConfigMap
			type pair struct{ Key, Value string }
			err := RenderFS(files(template), "t.yaml", map[string]any{"Name": "n", "Value": value, "List": []pair{{"other", value}}}, &got)
			require.NoError(t, err)
			want := strings.ToValidUTF8(value, "\ufffd")
			require.Equal(t, map[string]string{"key": want, "other": want}, got.Data)
			require.Equal(t, "ConfigMap", got.Kind)
		})
	}
}

func TestRenderKeepsKeysToo(t *testing.T) {
	var got corev1.ConfigMap
	labels := map[string]string{"a\nkind: Pod": "b", `c"`: "d"}
	require.NoError(t, RenderFS(files("metadata:\n  labels: {{ .L }}\n"), "t.yaml", map[string]any{"L": labels}, &got))
	require.Equal(t, labels, got.Labels)
	require.Empty(t, got.Kind)
}

func TestRenderRefuses(t *testing.T) {
	for name, c := range map[string]struct{ template, want string }{
		"unknown key":      {"kind: ConfigMap\ndatas: {}\n", `unknown field "datas"`},
		"duplicate key":    {"kind: ConfigMap\nkind: Secret\n", "already set"},
		"missing value":    {"kind: {{ .Missing }}\n", "Missing"},
		"two documents":    {"kind: ConfigMap\n---\nkind: ConfigMap\n", "2 documents instead of one"},
		"nothing":          {"# nothing\n", "0 documents instead of one"},
		"broken YAML":      {"kind: [\n", "t.yaml"},
		"broken template":  {"kind: {{ .X\n", "t.yaml"},
		"value with error": {"kind: {{ .F }}\n", "unsupported type"},
	} {
		t.Run(name, func(t *testing.T) {
			var got corev1.ConfigMap
			err := RenderFS(files(c.template), "t.yaml", map[string]any{"F": func() {}, "X": 1}, &got)
			require.ErrorIs(t, err, ErrDocument)
			require.ErrorContains(t, err, c.want)
		})
	}
	require.ErrorIs(t, Render("kubernetes/none.yaml", nil, &corev1.ConfigMap{}), ErrDocument)
}

func TestRBAC(t *testing.T) {
	text, err := RenderRBAC(Permissions{Namespace: "team-a", Secrets: []string{"model"}})
	require.NoError(t, err)
	documents, err := split(text)
	require.NoError(t, err)
	require.Len(t, documents, 5)
	var role rbacv1.Role
	require.NoError(t, yaml.UnmarshalStrict(documents[1], &role))
	require.Equal(t, "team-a", role.Namespace)
	require.Equal(t, "greenlight", role.Name)
	for _, rule := range role.Rules {
		require.NotContains(t, rule.Verbs, "*")
		require.NotContains(t, rule.Resources, "*")
		for _, resource := range rule.Resources {
			if resource == "secrets" {
				require.Equal(t, []string{"model"}, rule.ResourceNames)
				require.Equal(t, []string{"get"}, rule.Verbs)
			}
		}
	}
	var binding rbacv1.ClusterRoleBinding
	require.NoError(t, yaml.UnmarshalStrict(documents[4], &binding))
	require.Equal(t, "greenlight-capacity-team-a-greenlight", binding.Name)
	require.Equal(t, "team-a", binding.Subjects[0].Namespace)

	text, err = RenderRBAC(Permissions{Namespace: "team-a"})
	require.NoError(t, err)
	require.NotContains(t, string(text), "secrets")
}
