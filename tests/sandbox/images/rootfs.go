package images

import (
	"context"
	_ "embed"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/greenlight-ci/greenlight/tests/sandbox/cache"
)

// rootfs is the recipe of a Debian root file system.
type rootfs struct {
	suite string
	// packages are installed with all they depend on, without what they recommend.
	packages []string
	// onTop are further packages; they and what only they need go into a layer of their own.
	onTop []string
	// absent are packages that are depended on but left out: an empty package provides their names, so that the package
	// database stays consistent and says what is really there.
	absent []string
	// user is created with the uid, if named.
	user string
	uid  int
}

//go:embed absent.sh
var absentScript string

// excludes are not unpacked: nobody reads them in a container. Copyright files stay, and changelogs are taken out later,
// since the advisories are read from them.
func excludes() []string {
	return []string{
		"/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/lintian/*", "/usr/share/doc-base/*",
		"/usr/include/*",
	}
}

func (r rootfs) key() []string {
	return []string{
		r.suite, strings.Join(r.packages, " "), strings.Join(r.onTop, " "), strings.Join(r.absent, " "),
		r.user, strconv.Itoa(r.uid), strings.Join(excludes(), " "), absentScript, epoch().String(),
	}
}

// build makes the file system and returns its layers, whose blobs are under dir. Changelogs go to dir/changelogs.
func (r rootfs) build(ctx context.Context, dir string, log io.Writer) ([]*layer, error) {
	tarball := filepath.Join(dir, "rootfs.tar")
	if err := r.mmdebstrap(ctx, dir, tarball, log); err != nil {
		return nil, err
	}
	defer func() { _ = os.Remove(tarball) }()
	return splitRootfs(ctx, dir, tarball, append(append([]string{}, r.packages...), "apt"))
}

func (r rootfs) mmdebstrap(ctx context.Context, dir, tarball string, log io.Writer) error {
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		return fmt.Errorf("building a Debian root file system: mmdebstrap is not installed (apt-get install %s)", strings.Join(DebianPackages(), " "))
	}
	if _, err := os.Stat("/usr/share/keyrings/debian-archive-" + r.suite + "-stable.gpg"); err != nil {
		return fmt.Errorf("building a Debian root file system: the installed debian-archive-keyring lacks the keys of %s: run apt-get install --only-upgrade debian-archive-keyring", r.suite)
	}
	from, err := hostMirrors("/etc/apt", "/etc/os-release")
	if err != nil {
		return err
	}
	root, err := cache.Root()
	if err != nil {
		return err
	}
	debs := filepath.Join(root, "debs", r.suite)
	temp := filepath.Join(dir, "tmp")
	for _, d := range []string{debs, temp} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	defer func() { _ = os.RemoveAll(temp) }()

	include := append(append([]string{}, r.packages...), r.onTop...)
	args := []string{
		"--mode=root", "--variant=apt", "--format=tar", "--include=" + strings.Join(include, ","),
		`--aptopt=Acquire::Languages "none"`,
		`--aptopt=APT::Install-Recommends "false"`,
		// Nothing in a build needs to survive a power cut.
		"--dpkgopt=force-unsafe-io",
		// Packages that were downloaded before are put in place first, and what came new is kept.
		"--skip=download/empty", "--skip=essential/unlink",
		`--setup-hook=mkdir -p "$1"/var/cache/apt/archives/`,
		"--setup-hook=sync-in " + debs + " /var/cache/apt/archives/",
		"--customize-hook=sync-out /var/cache/apt/archives " + debs,
	}
	for _, pattern := range excludes() {
		args = append(args, "--dpkgopt=path-exclude="+pattern)
	}
	proxies, err := hostProxies(ctx)
	if err != nil {
		return err
	}
	for _, option := range proxies {
		args = append(args, "--aptopt="+option)
	}
	if len(r.absent) > 0 {
		script := filepath.Join(temp, "absent.sh")
		if err := os.WriteFile(script, []byte(absentScript), 0o755); err != nil {
			return err
		}
		args = append(args, fmt.Sprintf(`--essential-hook=sh %s "$1" %s`, script, strings.Join(r.absent, " ")))
	}
	if r.user != "" {
		args = append(args, fmt.Sprintf(
			`--customize-hook=chroot "$1" useradd --uid %d --user-group --no-create-home --home-dir /app --shell /usr/sbin/nologin %s`, r.uid, r.user))
	}
	args = append(args, r.suite, tarball)
	args = append(args, from.sources(r.suite)...)

	cmd := exec.CommandContext(ctx, "mmdebstrap", args...)
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH="+strconv.FormatInt(epoch().Unix(), 10), "TMPDIR="+temp, "LC_ALL=C.UTF-8")
	out, err := os.Create(filepath.Join(dir, "mmdebstrap.log"))
	if err != nil {
		return err
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	_, _ = fmt.Fprintf(log, "images: mmdebstrap %s: %s\n", r.suite, strings.Join(include, " "))
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("mmdebstrap: %w: %s", err, tail(out.Name(), 4))
	}
	return nil
}

// hostProxies are the apt options with which the host reaches its mirrors; apt in a new root does not read the host's.
func hostProxies(ctx context.Context) ([]string, error) {
	dump, err := exec.CommandContext(ctx, "apt-config", "dump", "--no-empty", "--format", "%f \"%v\";%n", "Acquire").Output()
	if err != nil {
		return nil, fmt.Errorf("asking apt for its proxies: %w", err)
	}
	var out []string
	for line := range strings.Lines(string(dump)) {
		line = strings.TrimSpace(line)
		if key, _, _ := strings.Cut(line, " "); strings.HasSuffix(strings.ToLower(key), "::proxy") {
			out = append(out, line)
		}
	}
	return out, nil
}

func tail(path string, lines int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], " | ")
}
