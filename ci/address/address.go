// Package address reads the addresses in kubeconfigs and image references, to tell what a container can reach.
package address

import (
	"net"
	"net/url"
	"regexp"
	"strings"
)

// serverLine matches a cluster's server in a kubeconfig, written as YAML or as JSON.
var serverLine = regexp.MustCompile(`(?m)(?:^|[\s{,-])"?server"?\s*:\s*["']?([a-z]+://[^"'\s,}]+)`)

// Servers lists the API servers that a kubeconfig names.
func Servers(kubeconfig string) []*url.URL {
	var servers []*url.URL
	for _, match := range serverLine.FindAllStringSubmatch(kubeconfig, -1) {
		if u, err := url.Parse(match[1]); err == nil {
			servers = append(servers, u)
		}
	}
	return servers
}

// OnlyLocal returns the first server if all of them are addresses of the caller's own machine, else nil. With several
// clusters in the file the current context decides, which is not looked at here.
func OnlyLocal(servers []*url.URL) *url.URL {
	for _, u := range servers {
		if !IsLocal(u.Hostname()) {
			return nil
		}
	}
	if len(servers) == 0 {
		return nil
	}
	return servers[0]
}

// IsLocal says whether a host is, inside a container, the container itself.
func IsLocal(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && (ip.IsLoopback() || ip.IsUnspecified())
}

// Common returns the scheme of the first server, https if there is none, and the host of all of them, "" if they differ.
func Common(servers []*url.URL) (scheme, host string) {
	scheme = "https"
	for i, u := range servers {
		if i == 0 {
			scheme, host = u.Scheme, u.Hostname()
		}
		if u.Hostname() != host {
			return scheme, ""
		}
	}
	return scheme, host
}

// Registry is the registry of an image reference or repository, with its port; "" if it names none.
func Registry(reference string) string {
	host, _, found := strings.Cut(reference, "/")
	if !found || !(strings.ContainsAny(host, ".:") || host == "localhost") {
		return ""
	}
	return host
}

// Hostname is a host without its port.
func Hostname(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		return name
	}
	return host
}
