// Command bench measures what the documentation claims and writes out/bench.json. Each value that has a peer is measured
// in the same run as its peer; there are no limits here, because a figure is not a test.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/greenlight-ci/greenlight/pipelines/probe/watch"
	"github.com/greenlight-ci/greenlight/pipelines/report"
)

// Row is one figure. Peer, PeerValue and Ratio are null where there is nothing to compare with.
type Row struct {
	Name      string   `json:"name"`
	Value     float64  `json:"value"`
	Unit      string   `json:"unit"`
	Peer      *string  `json:"peer"`
	PeerValue *float64 `json:"peerValue"`
	Ratio     *float64 `json:"ratio"`
	Samples   int      `json:"samples"`
}

func main() {
	out := flag.String("out", "out/bench.json", "`file` to write")
	releases := flag.Int("releases", 3, "how many releases to measure")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *out, *releases); err != nil {
		fmt.Fprintln(os.Stderr, "bench: "+err.Error())
		os.Exit(1)
	}
}

func run(ctx context.Context, out string, releases int) error {
	var rows []Row
	loads, err := repeat(3, func() (float64, error) {
		return timed(ctx, "dagger", "functions", "--progress=plain")
	})
	if err != nil {
		return err
	}
	rows = append(rows, Row{Name: "module.load.seconds", Value: median(loads), Unit: "s", Samples: len(loads)})

	measured, err := measureReleases(ctx, releases)
	if err != nil {
		return err
	}
	rows = append(rows, measured...)

	// The restart comes last: it ends what the others need.
	if _, err := timed(ctx, "go", "run", "./tests/sandbox", "down"); err != nil {
		return err
	}
	warm, err := timed(ctx, "go", "run", "./tests/sandbox", "up")
	if err != nil {
		return err
	}
	rows = append(rows, Row{Name: "sandbox.warm.seconds", Value: warm, Unit: "s", Samples: 1})
	return write(out, rows)
}

// measureReleases does releases under load, as make release does, and reads what they report.
func measureReleases(ctx context.Context, n int) ([]Row, error) {
	var seconds, overhead, moved []float64
	requests, failed := 0, 0
	for range n {
		dir, err := os.MkdirTemp("", "greenlight-bench-")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(dir)
		took, err := timed(ctx, "go", "run", "./tests/rehearsal/rehearse", "--out", dir)
		if err != nil {
			return nil, err
		}
		r, err := report.Read(filepath.Join(dir, "report.json"))
		if err != nil {
			return nil, err
		}
		var users watch.Result
		data, err := os.ReadFile(filepath.Join(dir, "load.json"))
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(data, &users); err != nil {
			return nil, err
		}
		staged := 0.0
		for _, s := range r.Stages {
			staged += s.Seconds
		}
		seconds, overhead, moved = append(seconds, took), append(overhead, took-staged), append(moved, r.Switch.Seconds)
		requests, failed = requests+users.Requests, failed+users.Failed
	}
	return []Row{
		{Name: "release.seconds", Value: median(seconds), Unit: "s", Samples: n},
		{Name: "release.overhead.seconds", Value: median(overhead), Unit: "s", Samples: n},
		{Name: "switch.seconds.service", Value: median(moved), Unit: "s", Samples: n},
		{Name: "switch.failed-requests.service", Value: float64(failed), Unit: "requests", Samples: requests},
	}, nil
}

func timed(ctx context.Context, name string, args ...string) (float64, error) {
	started := time.Now()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("running %s %v: %w", name, args, err)
	}
	return time.Since(started).Seconds(), nil
}

func repeat(n int, measure func() (float64, error)) ([]float64, error) {
	var values []float64
	for range n {
		v, err := measure()
		if err != nil {
			return nil, err
		}
		values = append(values, v)
	}
	return values, nil
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 0 {
		return (sorted[middle-1] + sorted[middle]) / 2
	}
	return sorted[middle]
}

func write(path string, rows []Row) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	data, err := json.MarshalIndent(rows, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}
