package address

import "testing"

// The module depends on the Dagger SDK alone, so these tests do without an assertion library.

func TestServers(t *testing.T) {
	tests := []struct {
		name, kubeconfig string
		local            string
		scheme, host     string
	}{
		{"yaml", "clusters:\n- cluster:\n    server: https://127.0.0.1:16443\n  name: a\n", "https://127.0.0.1:16443", "https", "127.0.0.1"},
		{"yaml, first key", "clusters:\n- cluster: {server: https://localhost:6443, insecure-skip-tls-verify: true}\n", "https://localhost:6443", "https", "localhost"},
		{"json", `{"clusters":[{"cluster":{"server":"https://[::1]:6443"}}]}`, "https://[::1]:6443", "https", "::1"},
		{"quoted", "    server: \"http://0.0.0.0:8001\"\n", "http://0.0.0.0:8001", "http", "0.0.0.0"},
		{"remote", "    server: https://k8s.example.com\n", "", "https", "k8s.example.com"},
		{"local and remote", "    server: https://127.0.0.1:1\n    server: https://k8s.example.com\n", "", "https", ""},
		{"two local ports", "    server: https://127.0.0.1:1\n    server: https://127.0.0.1:2\n", "https://127.0.0.1:1", "https", "127.0.0.1"},
		{"none", "apiVersion: v1\nkind: Config\n", "", "https", ""},
		{"another key", "    tls-server-name: https://127.0.0.1\n", "", "https", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			servers := Servers(test.kubeconfig)
			local := ""
			if u := OnlyLocal(servers); u != nil {
				local = u.String()
			}
			if local != test.local {
				t.Errorf("local server %q, want %q", local, test.local)
			}
			if scheme, host := Common(servers); scheme != test.scheme || host != test.host {
				t.Errorf("common %q %q, want %q %q", scheme, host, test.scheme, test.host)
			}
		})
	}
}

func TestRegistry(t *testing.T) {
	for reference, want := range map[string][2]string{
		"registry.localhost:15000/team/service":      {"registry.localhost:15000", "registry.localhost"},
		"ghcr.io/team/service@sha256:aa":             {"ghcr.io", "ghcr.io"},
		"localhost/service":                          {"localhost", "localhost"},
		"registry:5000/service":                      {"registry:5000", "registry"},
		"team/service":                               {"", ""},
		"service":                                    {"", ""},
		"[fd00::1]:5000/team/service":                {"[fd00::1]:5000", "fd00::1"},
		"docker.io/library/golang:1.26":              {"docker.io", "docker.io"},
		"registry.example.com/team/service:v1.0.0-a": {"registry.example.com", "registry.example.com"},
	} {
		host := Registry(reference)
		if host != want[0] || Hostname(host) != want[1] {
			t.Errorf("%s: %q %q, want %q", reference, host, Hostname(host), want)
		}
	}
}
