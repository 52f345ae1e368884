package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
)

// progress prints what happens, each line with the time since the start and the step it belongs to.
type progress struct {
	out     io.Writer
	started time.Time
	done    chan struct{}

	mu      sync.Mutex
	last    time.Time
	running map[string]time.Time
}

// silence is how long nothing may be said while something is done.
const silence = 30 * time.Second

func newProgress(out io.Writer) *progress {
	now := time.Now()
	p := &progress{out: out, started: now, last: now, done: make(chan struct{}), running: map[string]time.Time{}}
	go p.breakSilence()
	return p
}

// stop ends the notes about steps that take long.
func (p *progress) stop() { close(p.done) }

// step runs do and prints when it starts and ends. What do writes to its log is printed line by line.
func (p *progress) step(ctx context.Context, name string, do func(context.Context, io.Writer) error) error {
	p.mu.Lock()
	began := time.Now()
	p.running[name] = began
	p.mu.Unlock()
	p.printf("%s ...", name)
	log := &lineWriter{line: func(line string) { p.printf("%s", withStep(name, line)) }}
	err := do(ctx, log)
	log.flush()
	p.mu.Lock()
	delete(p.running, name)
	p.mu.Unlock()
	if err != nil {
		p.printf("%s failed after %.1f s", name, time.Since(began).Seconds())
		return err
	}
	p.printf("%s done (%.1f s)", name, time.Since(began).Seconds())
	return nil
}

// withStep puts the step's name before a line that does not say it itself.
func withStep(name, line string) string {
	if strings.HasPrefix(line, name+":") {
		return line
	}
	return name + ": " + line
}

func (p *progress) printf(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = time.Now()
	_, _ = fmt.Fprintf(p.out, "[%6.1f s] %s\n", p.last.Sub(p.started).Seconds(), fmt.Sprintf(format, args...))
}

func (p *progress) breakSilence() {
	ticker := time.NewTicker(silence / 6)
	defer ticker.Stop()
	for {
		select {
		case <-p.done:
			return
		case <-ticker.C:
		}
		p.mu.Lock()
		var waiting []string
		if time.Since(p.last) >= silence {
			for name, since := range p.running {
				waiting = append(waiting, fmt.Sprintf("%s (%.0f s)", name, time.Since(since).Seconds()))
			}
		}
		p.mu.Unlock()
		if len(waiting) > 0 {
			slices.Sort(waiting)
			p.printf("still at work: %s", strings.Join(waiting, ", "))
		}
	}
}

// lineWriter calls line for every line written to it.
type lineWriter struct {
	line func(string)

	mu   sync.Mutex
	rest []byte
}

// maxLine is where a line without an end is cut.
const maxLine = 4096

func (w *lineWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rest = append(w.rest, p...)
	for {
		i := bytes.IndexByte(w.rest, '\n')
		if i < 0 && len(w.rest) < maxLine {
			return len(p), nil
		}
		cut := i + 1
		if i < 0 {
			i, cut = maxLine, maxLine
		}
		if line := strings.TrimRight(string(w.rest[:i]), "\r "); line != "" {
			w.line(line)
		}
		w.rest = w.rest[cut:]
	}
}

func (w *lineWriter) flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if line := strings.TrimSpace(string(w.rest)); line != "" {
		w.line(line)
	}
	w.rest = nil
}
