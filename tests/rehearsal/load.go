package rehearsal

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/greenlight-ci/greenlight/pipelines/probe/infer"
	"github.com/greenlight-ci/greenlight/pipelines/probe/watch"
	"github.com/greenlight-ci/greenlight/pipelines/smoke"
)

// LoadRate is the number of requests a second that users are taken to send: half on fresh connections, half on kept ones.
const LoadRate = 200

// Load is steady traffic through the live Service.
type Load struct {
	stop   chan struct{}
	once   sync.Once
	done   chan struct{}
	result watch.Result
	err    error
}

// StartLoad sends the first golden request of the service in source, LoadRate times a second, to the live Service, which
// must exist, until Stop. It ends by itself after an hour.
func (s Sandbox) StartLoad(ctx context.Context, namespace, service, source string) (*Load, error) {
	live, err := s.Client.CoreV1().Services(namespace).Get(ctx, service, meta.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("finding the live Service: %w", err)
	}
	cases, err := smoke.ReadCases(filepath.Join(source, "cases"))
	if err != nil {
		return nil, err
	}
	request, err := firstGood(cases)
	if err != nil {
		return nil, err
	}
	address := net.JoinHostPort(live.Spec.ClusterIP, strconv.Itoa(int(live.Spec.Ports[0].Port)))
	l := &Load{stop: make(chan struct{}), done: make(chan struct{})}
	started := make(chan struct{})
	var first sync.Once
	options := watch.Options{
		URL: "http://" + address, Request: request, Rate: LoadRate, Arrivals: "constant", KeptConnections: 20,
		Duration: time.Hour, Timeout: 10 * time.Second, Stop: l.stop,
		OnEvent: func(e watch.Event) {
			if e.Type == watch.First {
				first.Do(func() { close(started) })
			}
		},
	}
	go func() {
		defer close(l.done)
		l.result, l.err = watch.Run(ctx, options)
	}()
	select {
	case <-started:
		return l, nil
	case <-l.done:
		return nil, fmt.Errorf("the load ended at once: %w", errors.Join(l.err, errors.New(summary(l.result))))
	case <-time.After(30 * time.Second):
		l.Stop()
		return nil, fmt.Errorf("the live Service %s answers no request within 30 s: %s", address, summary(l.result))
	}
}

// Stop ends the load, waits for the requests in flight, and returns what was counted.
func (l *Load) Stop() (watch.Result, error) {
	l.once.Do(func() { close(l.stop) })
	<-l.done
	return l.result, l.err
}

func firstGood(cases []smoke.Case) (infer.Request, error) {
	for _, c := range cases {
		if c.Answers() {
			return c.Request, nil
		}
	}
	return infer.Request{}, errors.New("no golden case expects status 200")
}

func summary(r watch.Result) string {
	text := fmt.Sprintf("%d requests, %d failed", r.Requests, r.Failed)
	if len(r.Failures) > 0 {
		text += ", first: " + r.Failures[0].Reason
	}
	return text
}
