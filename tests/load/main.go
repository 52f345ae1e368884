// Command load sends steady open-loop load to one URL, half of it on fresh connections and half on kept ones, and counts what
// users would have seen while a release went on. It ends with its duration, with SIGINT or SIGTERM, or when a given file appears. See package
// watch for what counts as failed, and for what is never repeated behind the caller's back.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/greenlight-ci/greenlight/pipelines/probe/infer"
	"github.com/greenlight-ci/greenlight/pipelines/probe/watch"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	failed, err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(2)
	case failed > 0:
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (failed int, err error) {
	flags := flag.NewFlagSet("load", flag.ContinueOnError)
	flags.SetOutput(stderr)
	var options watch.Options
	var bodyFile, outFile, untilFile string
	request := infer.Request{}
	flags.StringVar(&options.URL, "url", "", "the service, such as http://10.96.0.10 (required)")
	flags.StringVar(&request.Path, "path", infer.DefaultPath, "the path of the requests")
	flags.StringVar(&bodyFile, "body", "", "file with the JSON body of the requests (default: one 8x8 digit of zeros)")
	flags.StringVar(&options.Outputs, "outputs", infer.DefaultOutputs, `JSON path of the numbers that every answer must have, "-" for none`)
	flags.Float64Var(&options.Rate, "rate", 200, "requests per second, half of them on fresh connections")
	flags.StringVar(&options.Arrivals, "arrivals", "constant", "constant or poisson")
	flags.IntVar(&options.KeptConnections, "kept", 8, "number of kept connections")
	flags.DurationVar(&options.Timeout, "timeout", 5*time.Second, "for one request, from its scheduled time")
	flags.DurationVar(&options.Duration, "duration", 10*time.Minute, "when to end at the latest")
	flags.IntVar(&options.MaxRequests, "requests", 0, "number of requests to end after, 0 for no limit")
	flags.StringVar(&untilFile, "until-file", "", "end when this file exists")
	flags.StringVar(&outFile, "out", "", "write the result's JSON to this file")
	if err := flags.Parse(args); err != nil {
		return 0, err
	}
	if flags.NArg() > 0 {
		return 0, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	request.Body, err = body(bodyFile)
	if err != nil {
		return 0, err
	}
	options.Request = request
	options.TickEvery = time.Second
	options.MaxFailures = 200
	options.OnEvent = func(event watch.Event) {
		switch event.Type {
		case watch.First:
			fmt.Fprintf(stderr, "%s first answer by %s on a %s connection\n", event.At.UTC().Format("15:04:05.000"), event.Server, connection(event.Fresh))
		case watch.Failure:
			fmt.Fprintf(stderr, "%s FAILED on a %s connection: %s\n", event.At.UTC().Format("15:04:05.000"), connection(event.Fresh), event.Reason)
		}
	}
	stopping := make(chan struct{})
	finished := make(chan struct{})
	defer close(finished)
	go func() {
		defer close(stopping)
		awaitEnd(ctx, untilFile, finished)
	}()
	options.Stop = stopping
	result, err := watch.Run(context.WithoutCancel(ctx), options)
	if err != nil {
		return 0, err
	}
	if outFile != "" {
		if err := writeResult(outFile, result); err != nil {
			return result.Failed, err
		}
	}
	return result.Failed, printResult(stdout, result)
}

func connection(fresh bool) string {
	if fresh {
		return "fresh"
	}
	return "kept"
}

func body(file string) (json.RawMessage, error) {
	if file == "" {
		return json.RawMessage(`{"inputs":[[` + strings.TrimSuffix(strings.Repeat("0,", 64), ",") + `]]}`), nil
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the body: %w", err)
	}
	if !json.Valid(content) {
		return nil, fmt.Errorf("the body in %s is not JSON", file)
	}
	return content, nil
}

// awaitEnd returns when ctx or finished ends, or the file exists.
func awaitEnd(ctx context.Context, file string, finished <-chan struct{}) {
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-finished:
			return
		case <-ticker.C:
			if file == "" {
				continue
			}
			if _, err := os.Stat(file); err == nil {
				return
			}
		}
	}
}

// writeResult replaces the file at once: whoever reads it finds it whole.
func writeResult(file string, result watch.Result) error {
	encoded, err := json.MarshalIndent(result, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the result: %w", err)
	}
	if err := os.WriteFile(file+".part", append(encoded, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing the result: %w", err)
	}
	if err := os.Rename(file+".part", file); err != nil {
		return fmt.Errorf("writing the result: %w", err)
	}
	return nil
}

func printResult(w io.Writer, result watch.Result) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "requests\t%d in %.1f s\n", result.Requests, result.Seconds)
	fmt.Fprintf(table, "failed\t%d\n", result.Failed)
	for _, kind := range slices.Sorted(maps.Keys(result.Reasons)) {
		fmt.Fprintf(table, "  %s\t%d\n", kind, result.Reasons[kind])
	}
	fmt.Fprintf(table, "redialled\t%d\n", result.Redialled)
	for _, server := range result.Servers {
		fmt.Fprintf(table, "%s\t%d on fresh, %d on kept connections\n", server.Server, server.Fresh.Answers, server.Kept.Answers)
	}
	if result.Latency != nil {
		fmt.Fprintf(table, "latency\tp50 %.1f, p95 %.1f, p99 %.1f, max %.1f ms\n", result.Latency.P50, result.Latency.P95, result.Latency.P99, result.Latency.Max)
	}
	if err := table.Flush(); err != nil {
		return fmt.Errorf("printing the result: %w", err)
	}
	return nil
}
