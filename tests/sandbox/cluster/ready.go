package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// dnsUser is whom CoreDNS is to the API server.
const dnsUser = "system:coredns"

// An apiClient talks to the API server as the administrator. The few requests needed here do not warrant client-go,
// which would cost every first start of the sandbox a minute more of compiling.
type apiClient struct {
	http *http.Client
}

func (d directories) api() (apiClient, error) {
	cert, err := tls.LoadX509KeyPair(filepath.Join(d.etc, "admin.crt"), filepath.Join(d.etc, "admin.key"))
	if err != nil {
		return apiClient{}, fmt.Errorf("reading the administrator's certificate: %w", err)
	}
	ca, err := os.ReadFile(filepath.Join(d.etc, "ca.crt"))
	if err != nil {
		return apiClient{}, fmt.Errorf("reading the cluster's certificate: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	return apiClient{http: &http.Client{
		Timeout:   5 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool}},
	}}, nil
}

// get reads the object at path into v; nil: only its presence counts.
func (c apiClient) get(ctx context.Context, path string, v any) error {
	return c.do(ctx, http.MethodGet, path, nil, v)
}

// create creates the object, unless it is there.
func (c apiClient) create(ctx context.Context, path string, object any) error {
	body, err := json.Marshal(object)
	if err != nil {
		return err
	}
	return c.do(ctx, http.MethodPost, path, body, nil)
}

func (c apiClient) do(ctx context.Context, method, path string, body []byte, v any) error {
	request, err := http.NewRequestWithContext(ctx, method, "https://"+hostAPI()+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := c.http.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	exists := method == http.MethodPost && response.StatusCode == http.StatusConflict
	if response.StatusCode >= 300 && !exists {
		return fmt.Errorf("%s %s: %s", method, path, response.Status)
	}
	if v == nil {
		return nil
	}
	return json.Unmarshal(data, v)
}

// waitReady waits until the cluster is ready for pods: API server, DNS's rights, node, GPUs, the default ServiceAccount,
// names and Services.
func (d directories) waitReady(ctx context.Context, gpus int, log io.Writer, began time.Time) error {
	api, err := d.api()
	if err != nil {
		return err
	}
	defer api.http.CloseIdleConnections()
	ready := "node ready"
	if gpus > 0 {
		ready = fmt.Sprintf("node ready, with %d FAKE GPUs", gpus)
	}
	for _, step := range []struct {
		done  string
		check func(context.Context) error
	}{
		{"API server ready", func(ctx context.Context) error { return api.get(ctx, "/readyz", nil) }},
		{"", api.allowDNS},
		{ready, func(ctx context.Context) error { return api.nodeReady(ctx, gpus) }},
		{"", func(ctx context.Context) error {
			return api.get(ctx, "/api/v1/namespaces/default/serviceaccounts/default", nil)
		}},
		{"", resolveService},
		{"Services and their names answer", dialService},
	} {
		if err := d.retry(ctx, step.check); err != nil {
			return err
		}
		if step.done != "" {
			fmt.Fprintf(log, "cluster: %s (%.1f s)\n", step.done, time.Since(began).Seconds())
		}
	}
	return nil
}

// retry calls check until it succeeds, the supervisor ends or time is up.
func (d directories) retry(ctx context.Context, check func(context.Context) error) error {
	for {
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := check(attempt)
		cancel()
		if err == nil {
			return nil
		}
		if _, ok := d.daemon().Running(); !ok {
			return fmt.Errorf("the node ended: %s", d.daemon().LogTail(3))
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("the cluster does not get ready: %w", err)
			}
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// allowDNS lets CoreDNS read what it answers from.
func (c apiClient) allowDNS(ctx context.Context) error {
	const group = "rbac.authorization.k8s.io"
	type object = map[string]any
	reads := []string{"list", "watch"}
	role := object{
		"apiVersion": group + "/v1", "kind": "ClusterRole", "metadata": object{"name": dnsUser},
		"rules": []object{
			{"apiGroups": []string{""}, "resources": []string{"services", "pods", "namespaces"}, "verbs": reads},
			{"apiGroups": []string{"discovery.k8s.io"}, "resources": []string{"endpointslices"}, "verbs": reads},
		},
	}
	binding := object{
		"apiVersion": group + "/v1", "kind": "ClusterRoleBinding", "metadata": object{"name": dnsUser},
		"roleRef":  object{"apiGroup": group, "kind": "ClusterRole", "name": dnsUser},
		"subjects": []object{{"apiGroup": group, "kind": "User", "name": dnsUser}},
	}
	if err := c.create(ctx, "/apis/"+group+"/v1/clusterroles", role); err != nil {
		return err
	}
	return c.create(ctx, "/apis/"+group+"/v1/clusterrolebindings", binding)
}

func (c apiClient) nodeReady(ctx context.Context, gpus int) error {
	var node struct {
		Spec struct {
			Taints []struct{ Key string }
		}
		Status struct {
			Allocatable map[string]string
			Conditions  []struct{ Type, Status, Message string }
		}
	}
	if err := c.get(ctx, "/api/v1/nodes/"+nodeName, &node); err != nil {
		return err
	}
	if len(node.Status.Conditions) == 0 {
		return errors.New("the node has not reported yet")
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type == "Ready" && condition.Status != "True" {
			return fmt.Errorf("the node is not ready: %s", condition.Message)
		}
	}
	if len(node.Spec.Taints) > 0 {
		return fmt.Errorf("the node still has the taint %s", node.Spec.Taints[0].Key)
	}
	if have := node.Status.Allocatable["nvidia.com/gpu"]; gpus > 0 && have != strconv.Itoa(gpus) {
		return fmt.Errorf("the node offers %q of %d fake GPUs", have, gpus)
	}
	return nil
}

// resolveService asks the cluster's DNS, over the link, for the one Service that every cluster has.
func resolveService(ctx context.Context) error {
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, net.JoinHostPort(nodeAddress, "53"))
	}}
	name := "kubernetes.default.svc." + clusterDomain + "."
	found, err := resolver.LookupHost(ctx, name)
	if err != nil {
		return fmt.Errorf("asking the cluster's DNS: %w", err)
	}
	if len(found) != 1 || found[0] != apiService {
		return fmt.Errorf("the cluster's DNS says that %s is %v, not %s", name, found, apiService)
	}
	return nil
}

// dialService connects to a Service from the host, which takes kube-proxy's rules and the host's routes.
func dialService(ctx context.Context) error {
	connection, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(apiService, "443"))
	if err != nil {
		return fmt.Errorf("connecting to a Service: %w", err)
	}
	return connection.Close()
}
