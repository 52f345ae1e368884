// Package ci checks the CI front doors, the GitHub action and the GitLab component, without a CI service: that they are
// well formed, that they call the module with flags that it has, and that nothing a caller passes can become shell code.
package ci

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

const module = "../../ci"

type action struct {
	Inputs map[string]struct {
		Description string `json:"description"`
		Required    bool   `json:"required"`
		Default     string `json:"default"`
	} `json:"inputs"`
	Outputs map[string]struct {
		Value string `json:"value"`
	} `json:"outputs"`
	Runs struct {
		Using string `json:"using"`
		Steps []struct {
			ID    string            `json:"id"`
			Name  string            `json:"name"`
			Uses  string            `json:"uses"`
			Shell string            `json:"shell"`
			Run   string            `json:"run"`
			If    string            `json:"if"`
			Env   map[string]string `json:"env"`
			With  map[string]any    `json:"with"`
		} `json:"steps"`
	} `json:"runs"`
}

type component struct {
	Spec struct {
		Inputs map[string]struct {
			Description string  `json:"description"`
			Default     *string `json:"default"`
		} `json:"inputs"`
	} `json:"spec"`
}

type job struct {
	Image        string            `json:"image"`
	Variables    map[string]string `json:"variables"`
	BeforeScript []string          `json:"before_script"`
	Script       []string          `json:"script"`
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(module, path))
	require.NoError(t, err)
	return data
}

func readAction(t *testing.T) action {
	t.Helper()
	var a action
	require.NoError(t, yaml.Unmarshal(read(t, "github/action.yml"), &a))
	return a
}

func readComponent(t *testing.T) (component, job) {
	t.Helper()
	header, body, found := strings.Cut(string(read(t, "gitlab/templates/release.yml")), "\n---\n")
	require.True(t, found, "a component has a spec document and a job document")
	var c component
	require.NoError(t, yaml.UnmarshalStrict([]byte(header), &c))
	var jobs map[string]job
	require.NoError(t, yaml.Unmarshal([]byte(body), &jobs))
	require.Len(t, jobs, 1)
	for _, j := range jobs {
		return c, j
	}
	panic("unreachable")
}

// releaseFlags reads the flags of `dagger call release` out of the module's source: name → required.
func releaseFlags(t *testing.T) map[string]bool {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(module, "release.go"), nil, parser.ParseComments)
	require.NoError(t, err)
	flags := map[string]bool{}
	for _, decl := range file.Decls {
		fn, ok := decl.(*ast.FuncDecl)
		if !ok || fn.Name.Name != "Release" {
			continue
		}
		start := fn.Type.Params.Opening
		for _, param := range fn.Type.Params.List {
			var pragmas string
			for _, group := range file.Comments {
				if group.Pos() > start && group.End() < param.Pos() {
					pragmas += group.Text()
				}
			}
			start = param.End()
			for _, name := range param.Names {
				if name.Name != "ctx" {
					flags[kebab(name.Name)] = !strings.Contains(pragmas, "+optional") && !strings.Contains(pragmas, "+default")
				}
			}
		}
	}
	require.NotEmpty(t, flags)
	return flags
}

var upper = regexp.MustCompile(`([a-z0-9])([A-Z])`)

func kebab(name string) string { return strings.ToLower(upper.ReplaceAllString(name, "$1-$2")) }

var flagPattern = regexp.MustCompile(`(?m)(?:^|[\s("])--([a-z][a-z-]+)`)

// called lists the flags that a script passes to `release`.
func called(script string) map[string]bool {
	// Flags of dagger itself and of the function that follows, and of the script's other tools.
	others := map[string]bool{"progress": true, "mod": true, "path": true, "no-cache": true}
	flags := map[string]bool{}
	for _, match := range flagPattern.FindAllStringSubmatch(script, -1) {
		if !others[match[1]] {
			flags[match[1]] = true
		}
	}
	return flags
}

func TestFlagsAreTheModules(t *testing.T) {
	_, j := readComponent(t)
	scripts := map[string]string{
		"github": string(read(t, "github/release.sh")),
		"gitlab": strings.Join(j.Script, "\n"),
	}
	known := releaseFlags(t)
	for name, script := range scripts {
		t.Run(name, func(t *testing.T) {
			passed := called(script)
			for flag := range passed {
				require.Contains(t, known, flag)
			}
			for flag, required := range known {
				if required {
					require.Contains(t, passed, flag)
				}
			}
		})
	}
}

func TestActionIsWellFormed(t *testing.T) {
	a := readAction(t)
	require.Equal(t, "composite", a.Runs.Using)
	used := map[string]bool{}
	expression := regexp.MustCompile(`inputs\.([a-z-]+)`)
	for _, match := range expression.FindAllStringSubmatch(string(read(t, "github/action.yml")), -1) {
		require.Contains(t, a.Inputs, match[1])
		used[match[1]] = true
	}
	for name, input := range a.Inputs {
		require.NotEmpty(t, input.Description, name)
		require.True(t, used[name], "input %s is not used", name)
	}
	ids := map[string]bool{}
	for _, step := range a.Runs.Steps {
		require.NotContains(t, step.Run, "${{", "%s: an expression in a script is code that the caller writes", step.Name)
		if step.Run != "" {
			require.NotEmpty(t, step.Shell, "%s: a composite action's run step needs a shell", step.Name)
		}
		ids[step.ID] = true
	}
	for name, output := range a.Outputs {
		if match := regexp.MustCompile(`steps\.([a-z-]+)\.`).FindStringSubmatch(output.Value); match != nil {
			require.True(t, ids[match[1]], "output %s names a step that there is not", name)
		}
	}
	script := string(read(t, "github/release.sh"))
	for _, step := range a.Runs.Steps {
		for name := range step.Env {
			require.Contains(t, script, name, "%s is set but not used", name)
		}
	}
}

func TestComponentIsWellFormed(t *testing.T) {
	c, j := readComponent(t)
	text := string(read(t, "gitlab/templates/release.yml"))
	used := map[string]bool{}
	for _, match := range regexp.MustCompile(`\$\[\[ inputs\.([a-z-]+) \]\]`).FindAllStringSubmatch(text, -1) {
		require.Contains(t, c.Spec.Inputs, match[1])
		used[match[1]] = true
	}
	for name, input := range c.Spec.Inputs {
		require.NotEmpty(t, input.Description, name)
		require.True(t, used[name], "input %s is not used", name)
	}
	require.NotContains(t, strings.Join(append(j.Script, j.BeforeScript...), "\n"), "$[[", "an input in a script is code that the caller writes")
}

func TestExamplesAreWellFormed(t *testing.T) {
	inputs := readAction(t).Inputs
	var workflow struct {
		Jobs map[string]struct {
			Steps []struct {
				Uses string            `json:"uses"`
				With map[string]string `json:"with"`
			} `json:"steps"`
		} `json:"jobs"`
	}
	// The value of persist-credentials is a boolean, which is a string to the action.
	text := bytes.ReplaceAll(read(t, "github/example-workflow.yml"), []byte("persist-credentials: false"), []byte(`persist-credentials: "false"`))
	require.NoError(t, yaml.Unmarshal(text, &workflow))
	found := false
	for _, step := range workflow.Jobs["release"].Steps {
		if !strings.HasPrefix(step.Uses, "greenlight-ci/greenlight/ci/github@") {
			continue
		}
		found = true
		for name, value := range step.With {
			require.Contains(t, inputs, name)
			if name == "kubeconfig" || strings.HasPrefix(name, "signing-") || strings.HasSuffix(name, "-password") {
				require.Contains(t, value, "secrets.")
			}
		}
		for name, input := range inputs {
			if input.Required {
				require.Contains(t, step.With, name)
			}
		}
	}
	require.True(t, found)

	c, _ := readComponent(t)
	var pipeline struct {
		Include []struct {
			File   string            `json:"file"`
			Inputs map[string]string `json:"inputs"`
		} `json:"include"`
	}
	require.NoError(t, yaml.Unmarshal(read(t, "gitlab/example.gitlab-ci.yml"), &pipeline))
	require.Len(t, pipeline.Include, 1)
	require.FileExists(t, filepath.Join(module, "..", pipeline.Include[0].File))
	for name := range pipeline.Include[0].Inputs {
		require.Contains(t, c.Spec.Inputs, name)
	}
}

// recorder stands where dagger is called: it writes down its arguments and leaves a report as the module would.
const recorder = `#!/bin/sh
for arg in "$@"; do printf '%s\n' "$arg"; done >"$RECORD"
[ -z "$DAGGER_FAILS" ] || exit 7
mkdir -p greenlight-report
printf 'GREENLIGHT_STATUS=rejected\nGREENLIGHT_REASON=p99 is 12 ms, 40%% over the limit\nGREENLIGHT_EXIT_CODE=3\nGREENLIGHT_IMAGE=r/x@sha256:aa\n' >greenlight-report/release.env
echo '# rejected' >greenlight-report/report.md
echo 3 >greenlight-report/exit-code
`

func TestScripts(t *testing.T) {
	_, j := readComponent(t)
	action, err := filepath.Abs(filepath.Join(module, "github/release.sh"))
	require.NoError(t, err)
	nasty := "v1; touch pwned $(touch pwned) `touch pwned` \"' -x"
	scripts := map[string]struct {
		shell []string
		env   []string
	}{
		"github": {[]string{"bash", action}, []string{
			"INPUT_VERSION=" + nasty, "INPUT_SOURCE=services/a b", "INPUT_BASE=" + nasty, "INPUT_BUILD_ARGS=A=1\nB=two words\n", "INPUT_MODULE=m",
			"GREENLIGHT_KUBECONFIG=topsecret", "GREENLIGHT_SIGNING_KEY=topsecret", "GREENLIGHT_SIGNING_PASSWORD=topsecret",
			"GREENLIGHT_REGISTRY_PASSWORD=topsecret", "INPUT_REGISTRY_USERNAME=robot",
		}},
		"gitlab": {[]string{"sh", "-ec", strings.Join(j.Script, "\n")}, []string{
			"GREENLIGHT_VERSION=" + nasty, "GREENLIGHT_SOURCE=services/a b", "GREENLIGHT_BASE=" + nasty, "GREENLIGHT_MODULE=m", "GREENLIGHT_CONFIG=c",
			"GREENLIGHT_PLATFORM=p", "GREENLIGHT_VERIFY_KEY=k", "GREENLIGHT_TRIVY_DB=", "GREENLIGHT_REGISTRY_USERNAME=robot",
			"KUBECONFIG_CONTENT=topsecret", "COSIGN_KEY=topsecret", "COSIGN_PASSWORD=topsecret", "CI_REGISTRY_PASSWORD=topsecret",
			"GREENLIGHT_KUBECONFIG_VARIABLE=KUBECONFIG_CONTENT", "GREENLIGHT_SIGNING_KEY_VARIABLE=COSIGN_KEY",
			"GREENLIGHT_SIGNING_PASSWORD_VARIABLE=COSIGN_PASSWORD", "GREENLIGHT_REGISTRY_PASSWORD_VARIABLE=CI_REGISTRY_PASSWORD",
		}},
	}
	for name, script := range scripts {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			bin := filepath.Join(dir, "bin")
			require.NoError(t, os.Mkdir(bin, 0o755))
			require.NoError(t, os.WriteFile(filepath.Join(bin, "dagger"), []byte(recorder), 0o755))
			run := func(more ...string) (string, *exec.ExitError) {
				cmd := exec.Command(script.shell[0], script.shell[1:]...)
				cmd.Dir = dir
				cmd.Env = append(append([]string{"PATH=" + bin + ":" + os.Getenv("PATH"), "RECORD=" + filepath.Join(dir, "record")}, script.env...), more...)
				out, err := cmd.CombinedOutput()
				var exit *exec.ExitError
				require.ErrorAs(t, err, &exit, string(out))
				return string(out), exit
			}
			out, exit := run("GITHUB_OUTPUT="+filepath.Join(dir, "output"), "GITHUB_STEP_SUMMARY="+filepath.Join(dir, "summary"))
			require.Equal(t, 3, exit.ExitCode(), "the exit code is greenlight's: %s", out)
			require.NotContains(t, out, "topsecret")
			require.NoFileExists(t, filepath.Join(dir, "pwned"))
			record, err := os.ReadFile(filepath.Join(dir, "record"))
			require.NoError(t, err)
			arguments := strings.Split(string(record), "\n")
			require.Contains(t, arguments, nasty, "a value is one argument, whatever is in it")
			require.Contains(t, arguments, "services/a b")
			require.Contains(t, arguments, "--allow-failure")
			require.NotContains(t, string(record), "topsecret")
			if name == "github" {
				require.Contains(t, arguments, "B=two words")
				output, err := os.ReadFile(filepath.Join(dir, "output"))
				require.NoError(t, err)
				require.Contains(t, string(output), "status=rejected\n")
				require.Contains(t, string(output), "exit-code=3\n")
				require.FileExists(t, filepath.Join(dir, "summary"))
				require.Contains(t, out, "40%25 over the limit")
			}

			_, exit = run("DAGGER_FAILS=1")
			require.Equal(t, 7, exit.ExitCode(), "an error of dagger itself is the step's")
		})
	}
}

func TestGitLabFileVariables(t *testing.T) {
	_, j := readComponent(t)
	dir := t.TempDir()
	bin := filepath.Join(dir, "bin")
	require.NoError(t, os.Mkdir(bin, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(bin, "dagger"), []byte(recorder), 0o755))
	kubeconfig := filepath.Join(dir, "kubeconfig")
	require.NoError(t, os.WriteFile(kubeconfig, []byte("topsecret"), 0o600))
	cmd := exec.Command("sh", "-ec", strings.Join(j.Script, "\n"))
	cmd.Dir = dir
	cmd.Env = []string{
		"PATH=" + bin + ":" + os.Getenv("PATH"), "RECORD=" + filepath.Join(dir, "record"), "KUBECONFIG=" + kubeconfig, "COSIGN_KEY=topsecret",
		"GREENLIGHT_KUBECONFIG_VARIABLE=KUBECONFIG", "GREENLIGHT_SIGNING_KEY_VARIABLE=COSIGN_KEY",
		"GREENLIGHT_SIGNING_PASSWORD_VARIABLE=UNSET_1", "GREENLIGHT_REGISTRY_PASSWORD_VARIABLE=UNSET_2",
	}
	out, _ := cmd.CombinedOutput()
	record, err := os.ReadFile(filepath.Join(dir, "record"))
	require.NoError(t, err, string(out))
	require.Contains(t, string(record), "file:"+kubeconfig+"\n")
	require.Contains(t, string(record), "env:COSIGN_KEY\n")
	require.NotContains(t, string(record), "--signing-password")
	require.NotContains(t, string(record), "--registry-password")
}
