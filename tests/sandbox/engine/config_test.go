package engine

import (
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/greenlight-ci/greenlight/tests/sandbox/cache"
)

func TestRenderConfig(t *testing.T) {
	got, err := renderConfig(Options{RegistryAddr: "127.0.0.1:15000", RegistryNames: []string{"registry.localhost", "other:80"}})
	require.NoError(t, err)
	require.JSONEq(t, `{
		"logLevel": "info",
		"gc": {"maxUsedSpace": "40GB", "minFreeSpace": "10%"},
		"registries": {
			"docker.io": {"mirrors": ["127.0.0.1:15000"]},
			"127.0.0.1:15000": {"http": true},
			"registry.localhost:15000": {"http": true},
			"other:80": {"http": true}
		}
	}`, string(got))

	_, err = renderConfig(Options{RegistryAddr: "localhost"})
	require.ErrorContains(t, err, `"localhost" is not host:port`)
}

func TestRenderHosts(t *testing.T) {
	tests := map[string]struct {
		opts    Options
		want    string
		wantErr string
	}{
		"address": {
			opts: Options{RegistryAddr: "10.0.0.1:15000", RegistryNames: []string{"registry.localhost", "registry.test:99"}},
			want: "10.0.0.1 registry.localhost\n10.0.0.1 registry.test\n127.0.0.1 localhost\n",
		},
		"localhost": {
			opts: Options{RegistryAddr: "localhost:15000", RegistryNames: []string{"registry.localhost"}},
			want: "127.0.0.1 registry.localhost\n127.0.0.1 localhost\n",
		},
		"no address": {
			opts:    Options{RegistryAddr: "registry.example:15000", RegistryNames: []string{"registry.localhost"}},
			wantErr: "has no IP address",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := renderHosts(test.opts, []byte("127.0.0.1 localhost\n"))
			if test.wantErr != "" {
				require.ErrorContains(t, err, test.wantErr)
				return
			}
			require.NoError(t, err)
			require.Equal(t, test.want, string(got))
		})
	}
}

func TestFreeSubnet(t *testing.T) {
	prefixes := func(list ...string) []netip.Prefix {
		var out []netip.Prefix
		for _, s := range list {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	got, err := freeSubnet(prefixes("0.0.0.0/0", "192.168.0.0/16", "10.96.0.0/12"))
	require.NoError(t, err)
	require.Equal(t, "10.93.0.0/16", got.String())

	got, err = freeSubnet(prefixes("10.93.4.0/24", "10.94.0.0/15"))
	require.NoError(t, err)
	require.Equal(t, "10.96.0.0/16", got.String())

	_, err = freeSubnet(prefixes("10.0.0.0/8"))
	require.ErrorContains(t, err, "every subnet")
}

func TestPlaceCheck(t *testing.T) {
	tests := map[string]struct{ root, wantErr string }{
		"home":       {root: "/home/me/.cache/greenlight"},
		"in var":     {root: "/var/cache/greenlight"},
		"covered":    {root: "/opt/greenlight", wantErr: "is under /opt"},
		"not /optim": {root: "/optimal"},
		"a colon":    {root: "/data/a:b", wantErr: "mount options cannot hold"},
		"too long":   {root: "/" + strings.Repeat("long/", 30), wantErr: "longer than the 107 bytes"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			err := place{root: test.root, dir: filepath.Join(test.root, "run/engine")}.check()
			if test.wantErr == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, test.wantErr)
			require.ErrorContains(t, err, cache.EnvDir, "the message says what to do")
		})
	}
}

func TestPlan(t *testing.T) {
	t.Setenv("HTTPS_PROXY", "http://proxy.example:3128")
	p := place{root: "/cache", dir: "/cache/run/engine"}
	built := artifacts{programs: "/p", sdk: "/s", digest: "sha256:1"}
	plan := func(opts Options, built artifacts) engineRun {
		run, err := p.plan(t.Context(), opts.withDefaults(), built)
		require.NoError(t, err)
		return run
	}
	base := plan(Options{}, built)
	require.Contains(t, base.environment, "HTTPS_PROXY=http://proxy.example:3128")
	require.Contains(t, base.environment, "DAGGER_GO_SDK_MANIFEST_DIGEST=sha256:1")
	require.Equal(t, base.key(), plan(Options{}, built).key())
	require.NotEqual(t, base.key(), plan(Options{RegistryNames: []string{"another.localhost"}}, built).key())
	require.NotEqual(t, base.key(), plan(Options{}, artifacts{programs: "/p", sdk: "/s", digest: "sha256:2"}).key())
}

func TestDebianPackages(t *testing.T) {
	require.Subset(t, DebianPackages(), []string{"iptables", "dnsmasq-base", "git", "libseccomp-dev", "pkg-config"})
}
