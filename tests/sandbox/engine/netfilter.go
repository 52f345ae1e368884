package engine

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"sort"
	"strings"
)

// filterTools are the families of packet filter rules; which of them the engine uses depends on the kernel. Each has a
// -save and a -restore program.
func filterTools() []string {
	return []string{"iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy"}
}

// saveRules returns the rules of every family in the format of iptables-save. A family that the kernel does not have is
// left out.
func saveRules(ctx context.Context) map[string]string {
	rules := map[string]string{}
	for _, tool := range filterTools() {
		out, err := command{}.output(ctx, tool+"-save")
		if err == nil {
			rules[tool] = string(out)
		}
	}
	return rules
}

// nftTables lists the tables of nftables, each as "family name".
func nftTables(ctx context.Context) []string {
	out, err := command{}.output(ctx, "nft", "list", "tables")
	if err != nil {
		return nil
	}
	var tables []string
	for line := range strings.Lines(string(out)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "table "); ok {
			tables = append(tables, name)
		}
	}
	return tables
}

// network names what the engine's own rules speak of.
type network struct {
	Name   string
	Subnet netip.Prefix
}

func (n network) bridge() string { return n.Name + "0" }

// restoreRules removes the rules that the engine added since before, and the chains and tables it made, and nothing else.
func restoreRules(ctx context.Context, before map[string]string, tablesBefore []string, n network) error {
	for tool, now := range saveRules(ctx) {
		script := removals(before[tool], now, n)
		if script == "" {
			continue
		}
		if err := (command{Stdin: strings.NewReader(script)}).run(ctx, tool+"-restore", "--noflush"); err != nil {
			return fmt.Errorf("removing packet filter rules: %w", err)
		}
	}
	if _, err := exec.LookPath("nft"); err != nil {
		return nil
	}
	for _, table := range newTables(tablesBefore, nftTables(ctx)) {
		family, name, _ := strings.Cut(table, " ")
		content, err := command{}.output(ctx, "nft", "list", "table", family, name)
		if err != nil || !disposable(name, string(content), n) {
			continue
		}
		if err := (command{}).run(ctx, "nft", "delete", "table", family, name); err != nil {
			return fmt.Errorf("removing the packet filter table %s: %w", table, err)
		}
	}
	return nil
}

func newTables(before, now []string) []string {
	had := map[string]bool{}
	for _, table := range before {
		had[table] = true
	}
	var added []string
	for _, table := range now {
		if !had[table] {
			added = append(added, table)
		}
	}
	return added
}

// disposable tells whether a table that was not there before holds no rule of anybody else: it is the CNI plugins' own
// and speaks of our network alone, or one of iptables' own and empty.
func disposable(name, content string, n network) bool {
	for line := range strings.Lines(content) {
		line = strings.TrimSpace(line)
		switch {
		case line == "", line == "}", strings.HasPrefix(line, "table "), strings.HasPrefix(line, "chain "),
			strings.HasPrefix(line, "comment "), strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "type ") && strings.HasSuffix(line, "policy accept;"):
		case name == "cni_plugins_masquerade" && n.mentionedIn(line):
		default:
			return false
		}
	}
	return true
}

// ruleTable is one table of an iptables-save listing.
type ruleTable struct {
	name   string
	chains []string // user-defined ones, in order
	rules  []string // "-A CHAIN …", in order
}

func parseRules(saved string) []ruleTable {
	var tables []ruleTable
	for line := range strings.Lines(saved) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "*"):
			tables = append(tables, ruleTable{name: line[1:]})
		case len(tables) == 0:
		case strings.HasPrefix(line, ":"):
			fields := strings.Fields(line[1:])
			// Built-in chains have a policy, others a dash.
			if len(fields) > 1 && fields[1] == "-" {
				t := &tables[len(tables)-1]
				t.chains = append(t.chains, fields[0])
			}
		case strings.HasPrefix(line, "-A "):
			t := &tables[len(tables)-1]
			t.rules = append(t.rules, line)
		}
	}
	return tables
}

// removals returns the input for iptables-restore --noflush that removes what now has more than before and what belongs to
// the engine; "" if there is nothing to remove. Rules that others added since before stay.
func removals(before, now string, n network) string {
	had := map[string]ruleTable{}
	for _, t := range parseRules(before) {
		had[t.name] = t
	}
	var out strings.Builder
	for _, t := range parseRules(now) {
		lines := tableRemovals(had[t.name], t, n)
		if len(lines) > 0 {
			fmt.Fprintf(&out, "*%s\n%s\nCOMMIT\n", t.name, strings.Join(lines, "\n"))
		}
	}
	return out.String()
}

func tableRemovals(before, now ruleTable, n network) []string {
	chains := engineChains(before, now, n)
	old := map[string]int{}
	for _, rule := range before.rules {
		old[rule]++
	}
	var lines []string
	for _, rule := range now.rules {
		if old[rule] > 0 {
			old[rule]--
			continue
		}
		// A chain that goes is emptied whole below.
		if chains[ruleChain(rule)] || (!n.mentionedIn(rule) && !chains[ruleTarget(rule)]) {
			continue
		}
		lines = append(lines, "-D"+strings.TrimPrefix(rule, "-A"))
	}
	var names []string
	for chain := range chains {
		names = append(names, chain)
	}
	sort.Strings(names)
	for _, chain := range names {
		lines = append(lines, "-F "+chain)
	}
	for _, chain := range names {
		lines = append(lines, "-X "+chain)
	}
	return lines
}

// engineChains returns the chains of the CNI plugins that were not there before and that hold no rule of anybody else.
func engineChains(before, now ruleTable, n network) map[string]bool {
	had := map[string]bool{}
	for _, chain := range before.chains {
		had[chain] = true
	}
	chains := map[string]bool{}
	for _, chain := range now.chains {
		if strings.HasPrefix(chain, "CNI-") && !had[chain] {
			chains[chain] = true
		}
	}
	// Whether a rule is ours may hang on the chain it jumps to: drop chains until nothing changes.
	for changed := true; changed; {
		changed = false
		for _, rule := range now.rules {
			chain := ruleChain(rule)
			if chains[chain] && !n.mentionedIn(rule) && !chains[ruleTarget(rule)] {
				delete(chains, chain)
				changed = true
			}
		}
	}
	return chains
}

func ruleChain(rule string) string {
	fields := strings.Fields(rule)
	if len(fields) < 2 {
		return ""
	}
	return fields[1]
}

func ruleTarget(rule string) string {
	fields := strings.Fields(rule)
	for i, field := range fields {
		if (field == "-j" || field == "-g") && i+1 < len(fields) {
			return fields[i+1]
		}
	}
	return ""
}

// mentionedIn tells whether a rule speaks of the engine's bridge, of an address in its subnet, or of its network by name.
func (n network) mentionedIn(rule string) bool {
	for _, field := range strings.FieldsFunc(rule, func(r rune) bool { return strings.ContainsRune(" \"\\;,{}", r) }) {
		if field == n.bridge() || field == n.Name {
			return true
		}
		if prefix, err := netip.ParsePrefix(field); err == nil && n.Subnet.Contains(prefix.Addr()) {
			return true
		}
		if addr, err := netip.ParseAddr(field); err == nil && n.Subnet.Contains(addr) {
			return true
		}
	}
	return false
}
