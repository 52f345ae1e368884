package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/greenlight-ci/greenlight/tests/sandbox/cache"
)

const (
	forwardSetting = "/proc/sys/net/ipv4/ip_forward"
	networkPrefix  = "gle"
	groupPrefix    = "greenlight-engine-"
	addressDir     = "/var/lib/cni" // where CNI plugins keep the addresses in use; covered by the engine's own
)

// journal is what the host was like before the engine started, written before anything is changed, so that a later
// command can undo a run that was killed at any point.
type journal struct {
	// Boot identifies the boot of the machine: the next one begins clean.
	Boot string
	// Key is that of the options and builds that the engine was started with.
	Key string
	// Network and Subnet are those of the engine's containers.
	Network string
	Subnet  netip.Prefix
	// Forwarding is the content of forwardSetting.
	Forwarding string
	// Rules and Tables are the packet filter's.
	Rules  map[string]string
	Tables []string
	// Groups are the control groups to make, Directories the host's directories.
	Groups      []string
	Directories []string
}

// readJournal returns nil if there is none.
func readJournal(path string) (*journal, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var j journal
	if err := json.Unmarshal(data, &j); err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	return &j, nil
}

// write puts the journal in place at once and for good.
func (j *journal) write(path string) error {
	data, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "host-*.tmp")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// snapshot records the host as it is.
func (p place) snapshot(ctx context.Context, key string, trees []hierarchy) (*journal, error) {
	// A container that ended while the last engine was stopped may have made its bridge once more.
	if err := (network{Name: networkPrefix + p.id()}).removeBridge(ctx); err != nil {
		return nil, err
	}
	forwarding, err := os.ReadFile(forwardSetting)
	if err != nil {
		return nil, err
	}
	taken, err := usedSubnets(ctx)
	if err != nil {
		return nil, err
	}
	subnet, err := freeSubnet(taken)
	if err != nil {
		return nil, err
	}
	j := &journal{
		Boot: bootID(), Key: key, Network: networkPrefix + p.id(), Subnet: subnet,
		Forwarding: string(forwarding), Rules: saveRules(ctx), Tables: nftTables(ctx),
	}
	for _, tree := range trees {
		j.Groups = append(j.Groups, filepath.Join(tree.Own, groupPrefix+p.id()))
	}
	if _, err := os.Stat(addressDir); errors.Is(err, fs.ErrNotExist) {
		j.Directories = append(j.Directories, addressDir)
	}
	return j, nil
}

func (n network) removeBridge(ctx context.Context) error {
	if _, err := net.InterfaceByName(n.bridge()); err != nil {
		return nil
	}
	if err := (command{}).run(ctx, "ip", "link", "delete", n.bridge()); err != nil {
		return fmt.Errorf("removing the bridge %s: %w", n.bridge(), err)
	}
	return nil
}

// id tells the sandboxes of one machine apart. It is short: with a prefix and a number it names a network interface, which
// takes 15 characters.
func (p place) id() string { return cache.Key(p.root)[:8] }

// bootID is "" where the kernel does not tell.
func bootID() string {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// usedSubnets lists the host's addresses and routes.
func usedSubnets(ctx context.Context) ([]netip.Prefix, error) {
	var used []netip.Prefix
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	for _, addr := range addrs {
		if prefix, err := netip.ParsePrefix(addr.String()); err == nil {
			used = append(used, prefix.Masked())
		}
	}
	routes, err := command{}.output(ctx, "ip", "-4", "-o", "route", "show", "table", "all")
	if err != nil {
		return nil, fmt.Errorf("listing routes: %w", err)
	}
	for line := range strings.Lines(string(routes)) {
		for _, field := range strings.Fields(line) {
			if prefix, err := netip.ParsePrefix(field); err == nil {
				used = append(used, prefix.Masked())
				break
			}
		}
	}
	return used, nil
}

// stop ends the engine and undoes what the journal says; without a journal there is nothing to undo.
func (p place) stop(ctx context.Context, log io.Writer) error {
	daemon := p.daemon()
	if _, running := daemon.Running(); running {
		fmt.Fprintln(log, "engine: stopping")
	}
	if err := daemon.Stop(ctx); err != nil {
		return err
	}
	j, err := readJournal(p.journal())
	if err != nil {
		return err
	}
	if j == nil {
		return nil
	}
	if j.Boot == bootID() {
		if err := j.undo(ctx); err != nil {
			return err
		}
	}
	for _, gone := range []string{p.socket(), p.journal()} {
		if err := os.Remove(gone); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// undo can be repeated. Processes go first: they could change the rest again.
func (j *journal) undo(ctx context.Context) error {
	if err := removeGroups(ctx, j.Groups); err != nil {
		return err
	}
	n := network{Name: j.Network, Subnet: j.Subnet}
	if err := n.removeBridge(ctx); err != nil {
		return err
	}
	if err := restoreRules(ctx, j.Rules, j.Tables, n); err != nil {
		return err
	}
	now, err := os.ReadFile(forwardSetting)
	if err != nil {
		return err
	}
	if string(now) != j.Forwarding {
		if err := os.WriteFile(forwardSetting, []byte(j.Forwarding), 0o644); err != nil {
			return fmt.Errorf("setting %s back: %w", forwardSetting, err)
		}
	}
	for _, dir := range j.Directories {
		// Somebody else may use it by now.
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) && !isNotEmpty(err) {
			return err
		}
	}
	return nil
}
