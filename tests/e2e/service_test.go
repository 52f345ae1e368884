package e2e

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/greenlight-ci/greenlight/tests/rehearsal"
)

// TestTheServicesOwnTests runs the linters and tests of the example service where it runs: in an image on the sandbox's
// base, which has torch. The Dockerfile's stage `test` is what a team's own CI would build.
func TestTheServicesOwnTests(t *testing.T) {
	sandbox, err := rehearsal.FromEnvironment()
	require.NoError(t, err)
	source, err := filepath.Abs(serviceDir)
	require.NoError(t, err)
	quote := func(s string) string {
		text, err := json.Marshal(s)
		require.NoError(t, err)
		return string(text)
	}
	query := fmt.Sprintf(`{host{directory(path:%s){dockerBuild(target:"test",buildArgs:[{name:"BASE",value:%s}]){sync}}}}`,
		quote(source), quote(sandbox.Base))
	cmd := exec.CommandContext(t.Context(), "dagger", "query", "--progress=plain", "-M")
	cmd.Stdin = strings.NewReader(query)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	require.Contains(t, string(out), "sync")
}
