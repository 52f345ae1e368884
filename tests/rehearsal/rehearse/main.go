// Command rehearse does a whole release of the example service against the sandbox while users send requests, prints what
// happened, and exits 0 only if the candidate serves, the previous version is down, and no request failed.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/greenlight-ci/greenlight/pipelines/config"
	"github.com/greenlight-ci/greenlight/pipelines/deploy"
	"github.com/greenlight-ci/greenlight/pipelines/probe/watch"
	"github.com/greenlight-ci/greenlight/pipelines/report"
	"github.com/greenlight-ci/greenlight/tests/rehearsal"
)

func main() {
	out := flag.String("out", "out", "`directory` for the report")
	source := flag.String("source", "images/service", "`directory` of the service")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := rehearse(ctx, *source, *out); err != nil {
		fmt.Fprintln(os.Stderr, "rehearse: "+err.Error())
		os.Exit(1)
	}
}

func rehearse(ctx context.Context, source, out string) error {
	sandbox, err := rehearsal.FromEnvironment()
	if err != nil {
		return err
	}
	c, err := config.Load(filepath.Join(source, "greenlight.yaml"))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(out, "dagger.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	state, err := deploy.Colours(ctx, sandbox.Client, c.Namespace, c.Service)
	if err != nil {
		return err
	}
	revision := revision(ctx)
	newest := newestVersion(state)
	r := rehearsal.Release{Source: source, Out: out, Log: progress{log}}
	if state.Live == "" {
		newest++
		r.Version = version(newest, revision)
		r.BuildArgs = []string{"MODEL_SEED=" + strconv.Itoa(newest)}
		fmt.Printf("Nothing is live: releasing %s first. Everything that dagger says is in %s.\n", r.Version, log.Name())
		first, err := sandbox.Run(ctx, r)
		if err != nil {
			return err
		}
		if first.Status != report.Released {
			printStages(first)
			return fmt.Errorf("the first release was %s: %s", first.Status, first.Reason)
		}
	}
	load, err := sandbox.StartLoad(ctx, c.Namespace, c.Service, source)
	if err != nil {
		return err
	}
	newest++
	r.Version = version(newest, revision)
	r.BuildArgs = []string{"MODEL_SEED=" + strconv.Itoa(newest)}
	fmt.Printf("Releasing %s under %d requests/s on the live Service, half on fresh connections, half on kept ones.\n", r.Version, rehearsal.LoadRate)
	started := time.Now()
	result, err := sandbox.Run(ctx, r)
	seconds := time.Since(started).Seconds()
	users, loadErr := load.Stop()
	if err = errors.Join(err, loadErr); err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(out, "load.json"), users); err != nil {
		return err
	}
	printStages(result)
	printEnd(result, users, seconds)
	return verdict(ctx, sandbox, c, result, users)
}

// verdict looks at the cluster itself: a report is only a claim.
func verdict(ctx context.Context, sandbox rehearsal.Sandbox, c *config.Config, result *report.Report, users watch.Result) error {
	if result.Status != report.Released {
		return fmt.Errorf("the release was %s: %s", result.Status, result.Reason)
	}
	if users.Failed > 0 {
		return fmt.Errorf("%d of %d users' requests failed: %v", users.Failed, users.Requests, users.Reasons)
	}
	state, err := deploy.Colours(ctx, sandbox.Client, c.Namespace, c.Service)
	if err != nil {
		return err
	}
	live, previous := state.Colours[state.Live], state.Colours[deploy.Other(state.Live)]
	if live.Version != result.Version || live.Ready < 1 {
		return fmt.Errorf("live is %s with %d pods ready, not %s", live.Version, live.Ready, result.Version)
	}
	if previous.Replicas != 0 || previous.Ready != 0 {
		return fmt.Errorf("the previous version %s still has %d pods", previous.Version, previous.Ready)
	}
	return nil
}

func printStages(r *report.Report) {
	w := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "STAGE\tSTATUS\tSECONDS\tDETAIL")
	for _, s := range r.Stages {
		fmt.Fprintf(w, "%s\t%s\t%.1f\t%s\n", s.Name, s.Status, s.Seconds, s.Detail)
	}
	_ = w.Flush()
}

func printEnd(r *report.Report, users watch.Result, seconds float64) {
	fmt.Printf("\n%s %s in %.0f s. Serving: %s (%s).\n", r.Version, r.Status, seconds, r.Live.Version, r.Live.Colour)
	fmt.Printf("Users: %d requests, %d failed.\n", users.Requests, users.Failed)
	for _, s := range users.Servers {
		fmt.Printf("  %s answered %d on fresh and %d on kept connections\n", s.Server, s.Fresh.Answers, s.Kept.Answers)
	}
	if r.Switch != nil {
		fmt.Printf("Switch: all new connections on the candidate after %.2f s; the release's own watch: %d requests, %d failed.\n",
			r.Switch.Seconds, r.Switch.Requests, r.Switch.Failed)
	}
}

var minor = regexp.MustCompile(`^v1\.(\d+)\.0-`)

// newestVersion is the highest minor version that either colour holds.
func newestVersion(state deploy.State) int {
	newest := -1
	for _, colour := range state.Colours {
		if m := minor.FindStringSubmatch(colour.Version); m != nil {
			if n, err := strconv.Atoi(m[1]); err == nil {
				newest = max(newest, n)
			}
		}
	}
	return newest
}

func version(minor int, revision string) string { return fmt.Sprintf("v1.%d.0-%s", minor, revision) }

// revision is the commit that is checked out. The images of a tree with changes carry it too: the sandbox is no registry
// of record.
func revision(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "git", "rev-parse", "--short=7", "HEAD").Output()
	if err != nil {
		return "0000000"
	}
	return strings.TrimSpace(string(out))
}

// progress lets a person see the plan go by: greenlight's own lines are in dagger's output.
type progress struct{ log io.Writer }

var stageLine = regexp.MustCompile(`(?m)(preflight|build|scan|sign|verify|deploy|smoke|warmup|latency|switch|bake|teardown) +(passed|rejected|failed|skipped) in .*$`)

func (p progress) Write(data []byte) (int, error) {
	for _, line := range stageLine.FindAll(data, -1) {
		fmt.Printf("  %s\n", line)
	}
	return p.log.Write(data)
}

func writeJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}
