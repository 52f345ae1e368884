package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// installMissing installs those of the packages that the host lacks, and records which so that they can be removed.
func installMissing(ctx context.Context, root string, wanted []string, log io.Writer) error {
	slices.Sort(wanted)
	wanted = slices.Compact(wanted)
	if _, err := exec.LookPath("apt-get"); err != nil {
		_, _ = fmt.Fprintf(log, "no apt-get here: taking for granted that the counterparts of these Debian packages are installed: %s\n", strings.Join(wanted, " "))
		return nil
	}
	missing, err := notInstalled(ctx, wanted)
	if err != nil {
		return err
	}
	if len(missing) == 0 {
		return nil
	}
	_, _ = fmt.Fprintf(log, "installing Debian packages: %s\n", strings.Join(missing, " "))
	before, err := installed(ctx)
	if err != nil {
		return err
	}
	install := append([]string{"install", "--yes", "--no-install-recommends"}, missing...)
	if err = aptGet(ctx, log, install...); err != nil {
		// The lists may be missing or out of date.
		if err = aptGet(ctx, log, "update"); err == nil {
			err = aptGet(ctx, log, install...)
		}
	}
	// Even a failed run may have installed something. Dependencies count as well.
	after, listErr := installed(context.WithoutCancel(ctx))
	if listErr != nil {
		return errors.Join(err, listErr)
	}
	var added []string
	for name := range after {
		if !before[name] {
			added = append(added, name)
		}
	}
	return errors.Join(err, record(root, added))
}

// notInstalled returns the packages that are not fully installed.
func notInstalled(ctx context.Context, wanted []string) ([]string, error) {
	have, err := installed(ctx)
	if err != nil {
		return nil, err
	}
	var missing []string
	for _, name := range wanted {
		if !have[name] {
			missing = append(missing, name)
		}
	}
	return missing, nil
}

// installed returns the names of all fully installed packages.
func installed(ctx context.Context) (map[string]bool, error) {
	out, err := exec.CommandContext(ctx, "dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Status}\n").Output()
	if err != nil {
		return nil, fmt.Errorf("asking dpkg for installed packages: %w", err)
	}
	have := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		if name, state, _ := strings.Cut(strings.TrimSpace(line), " "); state == "installed" {
			have[name] = true
		}
	}
	return have, nil
}

func aptGet(ctx context.Context, log io.Writer, args ...string) error {
	// Another apt may be at work: wait for it.
	cmd := exec.CommandContext(ctx, "apt-get", append([]string{"--quiet", "--option", "DPkg::Lock::Timeout=300"}, args...)...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	out, err := cmd.CombinedOutput()
	if err != nil {
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		return fmt.Errorf("apt-get %s: %w: %s", args[0], err, strings.Join(lines[max(0, len(lines)-3):], " | "))
	}
	_, _ = fmt.Fprintf(log, "apt-get %s done\n", args[0])
	return nil
}

func recordPath(root string) string { return filepath.Join(root, "installed-packages") }

// record adds packages to the list of those that up installed.
func record(root string, added []string) error {
	have, err := recorded(root)
	if err != nil {
		return err
	}
	all := append(have, added...)
	slices.Sort(all)
	if err := os.WriteFile(recordPath(root), []byte(strings.Join(slices.Compact(all), "\n")+"\n"), 0o644); err != nil {
		return fmt.Errorf("recording installed packages: %w", err)
	}
	return nil
}

func recorded(root string) ([]string, error) {
	data, err := os.ReadFile(recordPath(root))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading which packages were installed: %w", err)
	}
	return strings.Fields(string(data)), nil
}

// removePackages removes what up installed, and nothing else.
func removePackages(ctx context.Context, root string, log io.Writer) error {
	ours, err := recorded(root)
	if err != nil || len(ours) == 0 {
		return err
	}
	_, _ = fmt.Fprintf(log, "removing Debian packages: %s\n", strings.Join(ours, " "))
	if err := aptGet(ctx, log, append([]string{"remove", "--yes"}, ours...)...); err != nil {
		return err
	}
	return os.Remove(recordPath(root))
}
