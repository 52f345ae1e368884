package engine

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sort"
	"strings"
)

const (
	// maxCacheSpace is what the engine's cache may hold before it drops what was used least recently; it starts earlier
	// when the disk has less than minFreeSpace left.
	maxCacheSpace = "40GB"
	minFreeSpace  = "10%"
)

type engineConfig struct {
	LogLevel   string                    `json:"logLevel"`
	GC         engineGC                  `json:"gc"`
	Registries map[string]engineRegistry `json:"registries"`
}

type engineGC struct {
	MaxUsedSpace string `json:"maxUsedSpace"`
	MinFreeSpace string `json:"minFreeSpace"`
}

type engineRegistry struct {
	Mirrors []string `json:"mirrors,omitempty"`
	HTTP    bool     `json:"http,omitempty"`
}

// renderConfig returns /etc/dagger/engine.json.
func renderConfig(opts Options) ([]byte, error) {
	names, err := registryNames(opts)
	if err != nil {
		return nil, err
	}
	config := engineConfig{
		LogLevel:   "info",
		GC:         engineGC{MaxUsedSpace: maxCacheSpace, MinFreeSpace: minFreeSpace},
		Registries: map[string]engineRegistry{"docker.io": {Mirrors: []string{opts.RegistryAddr}}},
	}
	for _, name := range append(names, opts.RegistryAddr) {
		config.Registries[name] = engineRegistry{HTTP: true}
	}
	return json.MarshalIndent(config, "", "  ")
}

// registryNames returns the registry's further names, each with a port.
func registryNames(opts Options) ([]string, error) {
	_, port, err := net.SplitHostPort(opts.RegistryAddr)
	if err != nil {
		return nil, fmt.Errorf("the registry's address %q is not host:port: %w", opts.RegistryAddr, err)
	}
	var names []string
	for _, name := range opts.RegistryNames {
		if !strings.Contains(name, ":") {
			name += ":" + port
		}
		names = append(names, name)
	}
	return names, nil
}

// renderHosts adds the registry's names to the host's /etc/hosts, ahead of what it says itself.
func renderHosts(opts Options, hosts []byte) ([]byte, error) {
	names, err := registryNames(opts)
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(opts.RegistryAddr)
	if err != nil {
		return nil, err
	}
	if host == "localhost" {
		host = "127.0.0.1"
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return nil, fmt.Errorf("the registry's address %q has no IP address: %w", opts.RegistryAddr, err)
	}
	var out bytes.Buffer
	for _, name := range names {
		bare, _, err := net.SplitHostPort(name)
		if err != nil {
			return nil, fmt.Errorf("the registry's name %q is not a host name with or without a port: %w", name, err)
		}
		fmt.Fprintf(&out, "%s %s\n", addr, bare)
	}
	out.Write(hosts)
	return out.Bytes(), nil
}

// proxyEnvironment is what the engine gets of this process's environment: what it needs to reach the network.
func proxyEnvironment() []string {
	var env []string
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "FTP_PROXY"} {
		for _, spelled := range []string{name, strings.ToLower(name)} {
			if value, ok := os.LookupEnv(spelled); ok {
				env = append(env, spelled+"="+value)
			}
		}
	}
	sort.Strings(env)
	return env
}

// freeSubnet returns a subnet for the engine's containers that overlaps no address or route of the host.
func freeSubnet(taken []netip.Prefix) (netip.Prefix, error) {
	for second := byte(93); second < 128; second++ {
		candidate := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, second, 0, 0}), 16)
		free := true
		for _, t := range taken {
			// A default route covers everything and takes nothing.
			if t.Bits() > 0 && t.Overlaps(candidate) {
				free = false
				break
			}
		}
		if free {
			return candidate, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("the host uses every subnet from 10.93.0.0/16 to 10.127.0.0/16, none is left for containers")
}
