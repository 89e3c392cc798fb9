package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/api/client"
)

// The states of a check.
const (
	checkOK      = "ok"
	checkWarning = "warning" // works, with a limit worth knowing
	checkFailed  = "failed"
	checkSkipped = "skipped"
)

// Bounds of the checks.
const (
	dialTimeout       = 3 * time.Second
	certificateLeft   = 7 * 24 * time.Hour // nodes renew long before
	clockDifferences  = 2 * time.Second
	probeTimeout      = 10 * time.Second
	clusterRoundsWait = 5 * time.Second
)

// check is one thing that doctor looked at.
type check struct {
	Name   string `json:"name"`
	State  string `json:"state"`
	Detail string `json:"detail"`
	Next   string `json:"next,omitzero"` // what to do about it
}

// examination is what the checks of a host need.
type examination struct {
	dataDir string
	socket  string // of libvirtd; empty: the usual place
	listen  string // host:port where the agent of this host listens or will
}

func doctorCommand(a *app) *cobra.Command {
	var e examination
	var client bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check this host and the way to the cluster",
		Long: `Checks the programs, devices, resources and kernel of this host, and, where
an address or a key is set, the nodes of the cluster. Each problem comes with
the next step. Exit status 1 means that a check failed; warnings do not count.`,
		Example: "  debvisor doctor\n  debvisor doctor -o json\n  debvisor doctor --client   # the way to the cluster only",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var checks []check
			if !client {
				checks = checkHost(cmd.Context(), e)
			}
			checks = append(checks, a.checkCluster(cmd.Context())...)
			return a.diagnosis(checks)
		},
	}
	cmd.Flags().StringVar(&e.dataDir, "data-dir", dataDirDefault, "data directory of the agent")
	cmd.Flags().StringVar(&e.socket, "libvirt-socket", "", "socket of libvirtd")
	cmd.Flags().StringVar(&e.listen, "listen", addressDefault, "address where the agent listens, or will")
	cmd.Flags().BoolVar(&client, "client", false, "check the way to the cluster only")
	return cmd
}

func (a *app) diagnosis(checks []check) error {
	failed := 0
	for _, c := range checks {
		if c.State == checkFailed {
			failed++
		}
	}
	if a.structured() {
		if err := a.emit(checks); err != nil {
			return err
		}
	} else {
		t := table{titles: []string{"CHECK", "STATE", "DETAIL"}, keep: []bool{true, true}}
		for _, c := range checks {
			t.rows = append(t.rows, []string{c.Name, c.State, c.Detail})
		}
		a.printf("%s", t.render(a.limit()))
		for _, c := range checks {
			if c.Next != "" && c.State != checkOK {
				a.printf("%s: %s\n", c.Name, clean(c.Next))
			}
		}
	}
	if failed > 0 {
		return &exitError{status: statusError, err: fmt.Errorf("%d of %d checks failed", failed, len(checks))}
	}
	return nil
}

// checkCluster looks at every node that the environment names.
func (a *app) checkCluster(ctx context.Context) []check {
	if a.addr == "" && a.env("DEBVISOR_ADDR") == "" && a.env("DEBVISOR_KEY") == "" && a.env("DEBVISOR_KEY_FILE") == "" {
		return []check{{Name: "cluster", State: checkSkipped, Detail: "neither --addr nor DEBVISOR_ADDR is set"}}
	}
	var checks []check
	for _, address := range a.addresses() {
		checks = append(checks, a.checkNode(ctx, address))
	}
	return append(checks, a.checkStatus(ctx))
}

// checkNode opens a connection to one node and judges its certificate.
func (a *app) checkNode(ctx context.Context, address string) check {
	c := check{Name: "node " + address, State: checkFailed}
	roots, err := a.roots()
	if err != nil {
		c.Detail, c.Next = err.Error(), "set DEBVISOR_CACERT to the cluster's ca.pem; every node has it in its data directory"
		return c
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		c.Detail, c.Next = "the address is not host:port", "set DEBVISOR_ADDR, as in node1:7443,node2:7443"
		return c
	}
	dialer := tls.Dialer{
		NetDialer: &net.Dialer{Timeout: dialTimeout},
		Config:    &tls.Config{RootCAs: roots, ServerName: host, MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}},
	}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		c.Detail = err.Error()
		c.Next = "start debvisor agent there, and let TCP and UDP to its port through"
		if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
			c.Next = "set DEBVISOR_CACERT to the ca.pem of this cluster; another cluster may answer at this address"
		}
		return c
	}
	defer conn.Close()
	leaf := conn.(*tls.Conn).ConnectionState().PeerCertificates[0]
	left := leaf.NotAfter.Sub(a.now())
	c.State, c.Detail = checkOK, fmt.Sprintf("answers; its certificate ends in %s", duration(left))
	if left < certificateLeft {
		c.State, c.Next = checkWarning, "nodes renew their certificates by themselves: see why in the log of this node"
	}
	return c
}

func (a *app) roots() (*x509.CertPool, error) {
	name := a.caFile()
	if name == "" {
		return nil, nil // those of the system
	}
	raw, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(raw) {
		return nil, fmt.Errorf("%s holds no certificate in PEM", name)
	}
	return pool, nil
}

// checkStatus asks the cluster how it is.
func (a *app) checkStatus(ctx context.Context) check {
	c := check{Name: "cluster", State: checkFailed}
	ctx, cancel := context.WithTimeout(ctx, clusterRoundsWait)
	defer cancel()
	conn, err := a.clientWith(clusterRoundsWait)
	var status *client.ClusterStatus
	if err == nil {
		status, err = conn.Status(ctx)
	}
	switch {
	case err != nil:
		c.Detail, c.Next = err.Error(), "the lines above say which nodes answer; most of the voters must"
	case !status.Healthy:
		c.State, c.Detail, c.Next = checkWarning, status.Summary, "debvisor cluster status shows each member"
	default:
		c.State, c.Detail = checkOK, status.Summary
	}
	return c
}
