package cluster

import (
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// config is a kubeconfig with one context; the parts can be replaced.
func config(server, user string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: here
clusters:
- {name: c, cluster: {server: "%s"}}
contexts:
- {name: here, context: {cluster: c, user: u, namespace: team}}
- {name: there, context: {cluster: missing, user: u}}
- {name: nobody, context: {cluster: c, user: missing}}
users:
- {name: u, user: %s}
`, server, user)
}

func TestLoadRefuses(t *testing.T) {
	const server, token = "https://10.0.0.1:6443", "{token: x}"
	dir := t.TempDir()
	for name, c := range map[string]struct {
		options Options
		text    string
		want    []string
	}{
		"missing file":     {options: Options{Kubeconfig: "/does/not/exist"}, want: []string{"kubeconfig /does/not/exist does not exist"}},
		"directory":        {options: Options{Kubeconfig: dir}, want: []string{"is a directory"}},
		"empty":            {text: "\n", want: []string{"is empty"}},
		"not YAML":         {text: "\tkind: [", want: []string{"cannot be read"}},
		"something else":   {text: "kind: Pod\napiVersion: v1\n", want: []string{"cannot be read"}},
		"no context":       {text: strings.Replace(config(server, token), "current-context: here", "", 1), want: []string{"no current-context", "here, nobody, there"}},
		"unknown context":  {text: config(server, token), options: Options{Context: "prod"}, want: []string{`no context "prod"`, "here, nobody, there"}},
		"missing cluster":  {text: config(server, token), options: Options{Context: "there"}, want: []string{`cluster "missing"`}},
		"missing user":     {text: config(server, token), options: Options{Context: "nobody"}, want: []string{`user "missing"`}},
		"no server":        {text: config("", token), want: []string{"has no server"}},
		"exec plugin":      {text: config(server, "{exec: {apiVersion: client.authentication.k8s.io/v1, command: aws, args: [eks], interactiveMode: Never}}"), want: []string{`exec plugin "aws"`, "kubeconfig with a token"}},
		"auth provider":    {text: config(server, "{auth-provider: {name: gcp}}"), want: []string{`auth provider "gcp"`, "with a token"}},
		"certificate file": {text: config(server, "{client-certificate: /not/here.crt, client-key: /not/here.key}"), want: []string{"cannot be read here", "--flatten"}},
		"bad override":     {text: config(server, token), options: Options{Server: "kube-api:6443"}, want: []string{"is not a URL"}},
	} {
		t.Run(name, func(t *testing.T) {
			if c.options.Kubeconfig == "" {
				c.options.Kubeconfig = write(t, c.text)
			}
			_, _, err := Load(c.options)
			require.ErrorIs(t, err, ErrConfig)
			for _, want := range c.want {
				require.ErrorContains(t, err, want)
			}
			require.NotContains(t, err.Error(), "\n")
		})
	}
}

func TestLoad(t *testing.T) {
	path := write(t, config("https://10.0.0.1:6443", "{token: x}"))
	cfg, namespace, err := Load(Options{Kubeconfig: path})
	require.NoError(t, err)
	require.Equal(t, "https://10.0.0.1:6443", cfg.Host)
	require.Equal(t, "x", cfg.BearerToken)
	require.Equal(t, "team", namespace)
	require.Empty(t, cfg.ServerName)

	cfg, namespace, err = Load(Options{Kubeconfig: path, Server: "https://kube-api:6443", Namespace: "other"})
	require.NoError(t, err)
	require.Equal(t, "https://kube-api:6443", cfg.Host)
	require.Equal(t, "10.0.0.1", cfg.ServerName, "the certificate is for what the kubeconfig names")
	require.Equal(t, "other", namespace)

	cfg, _, err = Load(Options{Kubeconfig: path, Server: "https://kube-api:6443", TLSServerName: "kubernetes"})
	require.NoError(t, err)
	require.Equal(t, "kubernetes", cfg.ServerName)

	t.Setenv("KUBECONFIG", path)
	cfg, _, err = Load(Options{})
	require.NoError(t, err)
	require.Equal(t, "https://10.0.0.1:6443", cfg.Host)

	t.Setenv("KUBECONFIG", "/does/not/exist")
	_, _, err = Load(Options{})
	require.ErrorIs(t, err, ErrConfig)
	require.ErrorContains(t, err, "/does/not/exist does not exist")
}

func TestConnect(t *testing.T) {
	release := make(chan struct{})
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Header.Get("Authorization") {
		case "Bearer good":
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, `{"major":"1","minor":"36","gitVersion":"v1.36.3"}`)
		case "Bearer slow":
			<-release
		case "Bearer forbidden":
			w.WriteHeader(http.StatusForbidden)
		default:
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	defer server.Close()
	defer close(release)
	ca := filepath.Join(t.TempDir(), "ca.crt")
	require.NoError(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
	withCA := func(address, token string) string {
		text := config(address, "{token: "+token+"}")
		return write(t, strings.Replace(text, `{server: "`+address+`"}`, `{server: "`+address+`", certificate-authority: `+ca+`}`, 1))
	}
	c, err := Connect(t.Context(), Options{Kubeconfig: withCA(server.URL, "good")})
	require.NoError(t, err)
	require.Equal(t, "v1.36.3", c.Version)
	require.Equal(t, "team", c.Namespace)
	require.NotNil(t, c.Client)

	unused := httptest.NewServer(nil)
	unused.Close()
	for name, c := range map[string]struct {
		options Options
		want    string
	}{
		"bad token":     {Options{Kubeconfig: withCA(server.URL, "bad")}, "does not accept the kubeconfig's credentials"},
		"forbidden":     {Options{Kubeconfig: withCA(server.URL, "forbidden")}, "403"},
		"slow":          {Options{Kubeconfig: withCA(server.URL, "slow"), Timeout: 200 * time.Millisecond}, "did not answer within 200ms"},
		"nobody there":  {Options{Kubeconfig: withCA(strings.Replace(unused.URL, "http:", "https:", 1), "good")}, "connection refused"},
		"unknown CA":    {Options{Kubeconfig: write(t, config(server.URL, "{token: good}"))}, "not signed by the kubeconfig's certificate authority"},
		"wrong name":    {Options{Kubeconfig: withCA(server.URL, "good"), TLSServerName: "kubernetes.invalid"}, "is for another name"},
		"no such name":  {Options{Kubeconfig: withCA("https://kube-api.invalid:6443", "good"), Timeout: 5 * time.Second}, "kube-api.invalid"},
		"no kubeconfig": {Options{Kubeconfig: "/does/not/exist"}, "does not exist"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Connect(t.Context(), c.options)
			require.ErrorIs(t, err, ErrConfig)
			require.ErrorContains(t, err, c.want)
			require.NotContains(t, err.Error(), "\n")
		})
	}
}
