package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/greenlight-ci/greenlight/tests/sandbox/cluster/plan"
)

// conditionEvery is how often a program's conditions are tried. Everything in the start-up chain waits for these.
const conditionEvery = 25 * time.Millisecond

// programs runs the node's programs. As pid 1 it also inherits processes that nobody else waits for, so one loop waits
// for all children and tells the one who asked.
type programs struct {
	mu      sync.Mutex
	waiting map[int]chan syscall.WaitStatus
	changed *sync.Cond
	done    map[string]chan struct{}
}

// runPrograms starts all programs as their conditions come true, and never returns: the node ends with its supervisor.
func runPrograms(list []plan.Program) error {
	r := &programs{waiting: map[int]chan syscall.WaitStatus{}, done: map[string]chan struct{}{}}
	r.changed = sync.NewCond(&r.mu)
	for _, p := range list {
		r.done[p.Name] = make(chan struct{})
	}
	for _, p := range list {
		go r.keep(p)
	}
	r.reap()
	return nil
}

func (r *programs) reap() {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		r.mu.Lock()
		for errors.Is(err, syscall.ECHILD) && len(r.waiting) == 0 {
			r.changed.Wait() // for the next start
		}
		if asked, ok := r.waiting[pid]; ok && err == nil {
			delete(r.waiting, pid)
			asked <- status
		}
		r.mu.Unlock()
	}
}

// keep runs p whenever it does not run.
func (r *programs) keep(p plan.Program) {
	for _, condition := range p.After {
		r.await(p, condition)
	}
	for pause := time.Second; ; {
		began := time.Now()
		status, err := r.once(p)
		if err == nil && p.Once && status == 0 {
			close(r.done[p.Name])
			return
		}
		if time.Since(began) > time.Minute {
			pause = time.Second
		}
		log.Printf("%s ended (status %d, %v) after %s; starting it again in %s; its log is %s", p.Name, status, err,
			time.Since(began).Round(time.Millisecond), pause, logPath(p.Name))
		time.Sleep(pause)
		pause = min(2*pause, 10*time.Second)
	}
}

func logPath(name string) string { return "/var/log/" + name + ".log" }

func (r *programs) once(p plan.Program) (int, error) {
	out, err := os.OpenFile(logPath(p.Name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return -1, err
	}
	defer func() { _ = out.Close() }()
	path, err := exec.LookPath(p.Args[0])
	if err != nil {
		return -1, err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return -1, err
	}
	defer func() { _ = null.Close() }()
	ended := make(chan syscall.WaitStatus, 1)
	// Under the lock, so that reap cannot take the status of a program which ends before it is known.
	r.mu.Lock()
	child, err := os.StartProcess(path, p.Args, &os.ProcAttr{
		Dir: "/", Env: append(os.Environ(), p.Env...), Files: []*os.File{null, out, out}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		r.mu.Unlock()
		return -1, err
	}
	pid := child.Pid
	_ = child.Release()
	r.waiting[pid] = ended
	r.changed.Broadcast()
	r.mu.Unlock()
	log.Printf("started %s", p.Name)
	status := <-ended
	if status.Signaled() {
		return -1, fmt.Errorf("killed by signal %s", status.Signal())
	}
	return status.ExitStatus(), nil
}

func (r *programs) await(p plan.Program, condition string) {
	kind, what, _ := strings.Cut(condition, ":")
	if kind == "done" {
		<-r.done[what]
		return
	}
	client := &http.Client{Timeout: 2 * time.Second}
	if kind == "https" {
		pool := x509.NewCertPool()
		pem, err := os.ReadFile(p.CA)
		if err != nil || !pool.AppendCertsFromPEM(pem) {
			log.Printf("%s: no certificate in %q: %v", p.Name, p.CA, err)
		}
		client.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
		defer client.CloseIdleConnections()
	}
	for !answers(client, kind, what) {
		time.Sleep(conditionEvery)
	}
}

func answers(client *http.Client, kind, what string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if kind == "https" {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, kind+":"+what, nil)
		if err != nil {
			return false
		}
		response, err := client.Do(request)
		if err != nil {
			return false
		}
		_ = response.Body.Close()
		return response.StatusCode == http.StatusOK
	}
	connection, err := (&net.Dialer{}).DialContext(ctx, kind, what)
	if err != nil {
		return false
	}
	_ = connection.Close()
	return true
}
