package cluster

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
)

// The cluster's addresses. They are private to the machine and fixed, so that there is one cluster on a machine.
const (
	linkRange    = "10.76.0.0/30"
	linkBits     = 30
	hostAddress  = "10.76.0.1"
	nodeAddress  = "10.76.0.2"
	podRange     = "10.77.0.0/16"
	serviceRange = "10.78.0.0/16"
	// apiService is the address of the Service default/kubernetes: the first of serviceRange.
	apiService = "10.78.0.1"
	// hostLink is the host's end of the link to the node.
	hostLink = "greenlight0"
	nodeName = "greenlight"
	// apiPort is where the API server listens in the node, hostAPIPort where the host's loopback has it.
	apiPort       = 6443
	hostAPIPort   = 16443
	clusterDomain = "cluster.local"
)

func hostAPI() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(hostAPIPort)) }

func nodeAPI() string { return net.JoinHostPort(nodeAddress, strconv.Itoa(apiPort)) }

// checkAddresses says what on the host is in the way of a cluster.
func checkAddresses(registryPort int) error {
	listener, err := net.Listen("tcp", hostAPI())
	if err != nil {
		return fmt.Errorf("port %d of 127.0.0.1 is taken: %w; stop what listens there", hostAPIPort, err)
	}
	_ = listener.Close()
	if registryPort == hostAPIPort {
		return fmt.Errorf("port %d is the API server's: give the registry another", registryPort)
	}
	links, err := net.Interfaces()
	if err != nil {
		return fmt.Errorf("listing the host's network links: %w", err)
	}
	taken := map[string][]netip.Prefix{}
	for _, link := range links {
		addresses, err := link.Addrs()
		if err != nil {
			return fmt.Errorf("listing the addresses of %s: %w", link.Name, err)
		}
		for _, a := range addresses {
			if prefix, err := netip.ParsePrefix(a.String()); err == nil {
				taken[link.Name] = append(taken[link.Name], prefix)
			}
		}
	}
	return checkOverlap(taken)
}

// checkOverlap fails if a network that the host is in, by link name, shares addresses with the cluster.
func checkOverlap(taken map[string][]netip.Prefix) error {
	for link, prefixes := range taken {
		for _, prefix := range prefixes {
			for _, own := range []string{linkRange, podRange, serviceRange} {
				if prefix.Overlaps(netip.MustParsePrefix(own)) {
					return fmt.Errorf("the host's link %s has %s, which overlaps with the cluster's %s: take that link down", link, prefix, own)
				}
			}
		}
	}
	return nil
}
