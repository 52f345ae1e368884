package config

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const minimal = `service: digits
image: {repository: registry.example.com/team/digits}
device: cuda
`

func TestParseFillsInDefaults(t *testing.T) {
	c, err := Parse([]byte(minimal), "dir/greenlight.yaml")
	require.NoError(t, err)
	require.Equal(t, "dir", c.Dir)
	require.Equal(t, "nvidia.com/gpu", c.GPU.Resource)
	require.EqualValues(t, 1, *c.GPU.Count)
	require.Equal(t, []string{"CRITICAL"}, c.Scan.Fail)
	require.Equal(t, 5*time.Second, c.Drain.Std())
	require.Equal(t, c.ReadyTimeout, c.Probes.Startup)
}

func TestParseSaysWhatIsWrongAndWhere(t *testing.T) {
	cases := map[string]struct{ content, message string }{
		"empty":              {"", "g.yaml is empty"},
		"unknown key":        {minimal + "latncy: {}\n", `g.yaml:4: unknown key "latncy"`},
		"unknown nested key": {minimal + "latency:\n  rat: 5\n", `g.yaml:5: unknown key "rat"`},
		"syntax":             {"service: [a\n", "g.yaml:"},
		"two documents":      {minimal + "---\n" + minimal, "more than one document"},
		"no service":         {"device: cpu\n", "service is missing"},
		"bad service":        {"service: Digits_1\nimage: {repository: r/x}\ndevice: cpu\n", `"Digits_1"`},
		"no device":          {"service: a\nimage: {repository: r.example.com/x}\n", "write cuda, or cpu if that is meant"},
		"unknown device":     {"service: a\nimage: {repository: r.example.com/x}\ndevice: tpu\n", `"tpu"`},
		"tag in repository":  {"service: a\nimage: {repository: 'r.example.com/x:latest'}\ndevice: cpu\n", "without tag or digest"},
		"floating base":      {"service: a\nimage: {repository: r.example.com/x, base: 'pytorch:latest'}\ndevice: cpu\n", "not pinned"},
		"context outside":    {"service: a\nimage: {repository: r.example.com/x, context: ../..}\ndevice: cpu\n", "leaves the directory"},
		"duration unit":      {minimal + "drain: 5\n", `g.yaml:4: "5" is not a duration`},
		"percent":            {minimal + "bake: {maxFailed: 3}\n", "ambiguous"},
		"not a number":       {minimal + "bake: {maxFailed: NaN}\n", "not a percentage"},
		"no limits":          {minimal + "latency: {limits: []}\n", "would pass anything"},
		"empty limit":        {minimal + "latency: {limits: [{quantile: 0.5}]}\n", "neither max nor maxRegression"},
		"severity":           {minimal + "scan: {fail: [critical]}\n", `"critical" is no severity`},
		"router":             {minimal + "switch: {router: magic}\n", `"magic" is not known`},
		"cuda without gpu":   {minimal + "gpu: {count: 0}\n", "gpu.count is 0"},
		"type":               {minimal + "replicas: many\n", "g.yaml:4:"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := Parse([]byte(c.content), "g.yaml")
			require.ErrorIs(t, err, ErrInvalid)
			require.ErrorContains(t, err, c.message)
			require.NotContains(t, err.Error(), "\n")
		})
	}
}

func TestLoadNamesAMissingFile(t *testing.T) {
	_, err := Load(filepath.Join(t.TempDir(), "greenlight.yaml"))
	require.ErrorIs(t, err, ErrInvalid)
	require.ErrorContains(t, err, "does not exist")
}

func TestPercent(t *testing.T) {
	c, err := Parse([]byte(minimal+"bake: {maxFailed: 2.5%}\nsmoke: {minAgreement: 0.9}\n"), "g.yaml")
	require.NoError(t, err)
	require.InDelta(t, 0.025, float64(c.Bake.MaxFailed), 1e-12)
	require.InDelta(t, 0.9, float64(c.Smoke.MinAgreement), 1e-12)
}

func TestTheExampleIsValid(t *testing.T) {
	_, err := Load("../../images/service/greenlight.yaml")
	require.NoError(t, err)
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(minimal))
	if example, err := os.ReadFile("../../images/service/greenlight.yaml"); err == nil {
		f.Add(example)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse(data, "g.yaml")
		require.True(t, (c == nil) == (err != nil))
	})
}
