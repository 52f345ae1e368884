package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMedian(t *testing.T) {
	for name, c := range map[string]struct {
		values []float64
		want   float64
	}{
		"one": {[]float64{3}, 3}, "odd": {[]float64{9, 1, 5}, 5}, "even": {[]float64{4, 1, 2, 9}, 3},
	} {
		t.Run(name, func(t *testing.T) { require.InDelta(t, c.want, median(c.values), 1e-12) })
	}
}

func TestARowWithoutPeerHasNulls(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out", "bench.json")
	require.NoError(t, write(path, []Row{{Name: "module.load.seconds", Value: 1.5, Unit: "s", Samples: 3}}))
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	require.JSONEq(t, `[{"name":"module.load.seconds","value":1.5,"unit":"s","peer":null,"peerValue":null,"ratio":null,"samples":3}]`, string(data))
}
