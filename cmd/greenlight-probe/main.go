// Command greenlight-probe runs the gates that need to be where the Services are. It is a small static binary that a Job runs
// in the cluster (package probe starts it); it can be run by hand as well. Progress goes to stderr; stdout gets one line with the
// result's JSON. The exit code is 0 also when a gate says no, since the result says so; 1 when the gate could not run, 2 when
// the command line or the options are wrong, 143 when SIGTERM ended it before it had a result (an evicted pod is replaced by its Job).
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"github.com/greenlight-ci/greenlight/pipelines/latency"
	"github.com/greenlight-ci/greenlight/pipelines/probe/protocol"
	"github.com/greenlight-ci/greenlight/pipelines/probe/watch"
	"github.com/greenlight-ci/greenlight/pipelines/smoke"
	"github.com/greenlight-ci/greenlight/pipelines/warmup"
)

const usage = `usage: greenlight-probe smoke|warmup|latency|watch [--options FILE]

  smoke    golden requests to the candidate: values, shapes, NaN, device, pins, agreement with live
  warmup   requests until the latency is stable
  latency  open-loop load on candidate and live, decided sequentially
  watch    steady load on one URL, with events about who answers, until SIGTERM or its duration ends

FILE holds the JSON of the subcommand's options; default ` + protocol.OptionsFile + `.
`

// errUsage marks errors of the command line and the options.
var errUsage = errors.New("usage")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case err == nil:
	case errors.Is(err, errUsage), errors.Is(err, smoke.ErrOptions), errors.Is(err, warmup.ErrOptions), errors.Is(err, latency.ErrOptions), errors.Is(err, watch.ErrOptions):
		fmt.Fprintln(os.Stderr, "greenlight-probe:", err)
		os.Exit(2)
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "greenlight-probe:", err)
		os.Exit(128 + int(syscall.SIGTERM))
	default:
		fmt.Fprintln(os.Stderr, "greenlight-probe:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 || args[0] == "-h" || args[0] == "--help" || args[0] == "help" {
		fmt.Fprint(stderr, usage)
		if len(args) == 0 {
			return fmt.Errorf("%w: the subcommand is missing", errUsage)
		}
		return nil
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { fmt.Fprint(stderr, usage) }
	file := flags.String("options", protocol.OptionsFile, "the JSON of the subcommand's options")
	if err := flags.Parse(args[1:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%w: unexpected argument %q", errUsage, flags.Arg(0))
	}
	out := &lines{w: stdout}
	logTo := &lines{w: stderr}
	log := func(line string) { fmt.Fprintln(logTo, args[0]+": "+line) }
	switch args[0] {
	case "smoke":
		return gate(*file, out, smoke.ErrRejected, func(options smoke.Options) (smoke.Result, error) {
			options.Log = log
			return smoke.Run(ctx, options)
		})
	case "warmup":
		return gate(*file, out, warmup.ErrRejected, func(options warmup.Options) (warmup.Result, error) {
			options.Log = log
			return warmup.Run(ctx, options)
		})
	case "latency":
		return gate(*file, out, latency.ErrRejected, func(options latency.Options) (latency.Result, error) {
			options.Log = log
			return latency.Run(ctx, options)
		})
	case "watch":
		return gate(*file, out, nil, func(options watch.Options) (watch.Result, error) {
			// SIGTERM is the ordinary end of a watch: requests in flight are awaited and the result is written.
			options.Stop = ctx.Done()
			options.OnEvent = func(event watch.Event) {
				if err := protocol.Write(out, protocol.EventPrefix, event); err != nil {
					log(err.Error())
				}
			}
			return watch.Run(context.WithoutCancel(ctx), options)
		})
	}
	return fmt.Errorf("%w: unknown subcommand %q (smoke, warmup, latency or watch)", errUsage, args[0])
}

// gate reads the options, runs one subcommand and writes its result. rejected is the sentinel of a gate's no, which the result carries.
func gate[Options, Result any](file string, out io.Writer, rejected error, do func(Options) (Result, error)) error {
	var options Options
	if err := readOptions(file, &options); err != nil {
		return err
	}
	result, err := do(options)
	if err != nil && (rejected == nil || !errors.Is(err, rejected)) {
		return err
	}
	return protocol.Write(out, protocol.ResultPrefix, result)
}

func readOptions(file string, options any) error {
	content, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("%w: reading the options: %w", errUsage, err)
	}
	decoder := json.NewDecoder(bytes.NewReader(content))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(options); err != nil {
		return fmt.Errorf("%w: reading the options %s: %s", errUsage, file, strings.TrimPrefix(err.Error(), "json: "))
	}
	return nil
}

// lines keeps the writes of several goroutines apart.
type lines struct {
	mu sync.Mutex
	w  io.Writer
}

// Write writes all of p at once.
func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}
