package cluster

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/rpc"
	"github.com/debvisor/debvisor/fsm"
)

const (
	renewRetry    = 10 * time.Second // after a failed renewal
	renewTimeout  = 10 * time.Second
	removalPoll   = time.Second // how often a node looks whether it was removed
	removalPeers  = 16          // asked in one go
	removalAnswer = 2 * time.Second
)

// openTrust loads the CA, this node's certificate and the seal keys. A voter
// whose certificate has expired while everything was off signs a new one by
// itself; otherwise a cluster that was off for a month could not start again.
func (s *Server) openTrust() error {
	ca, cert, err := s.dir.credentials()
	if err != nil {
		return err
	}
	s.trust = newTrust(s.identity.ClusterID, ca)
	if s.seals, err = loadSealKeys(s.dir, s.identity.ClusterID); err != nil {
		return err
	}
	s.cert.Store(cert)
	if time.Now().After(cert.Leaf.NotAfter) {
		authority, err := s.seals.authority(ca)
		if err != nil {
			return api.Errorf(api.CodeUnavailable, "the node's certificate expired at %s", cert.Leaf.NotAfter.UTC().Format(time.RFC3339)).
				Do("remove the node from the cluster, empty its data directory and join again")
		}
		if err := s.renewWith(func(request []byte) ([]byte, error) { return s.signFor(authority, request, s.Self()) }); err != nil {
			return err
		}
	}
	id, err := s.trust.nodeOf([]*x509.Certificate{s.cert.Load().Leaf})
	if err == nil && id != s.identity.NodeID {
		err = fmt.Errorf("it is the certificate of node %s", id)
	}
	if err != nil {
		return &api.Error{Code: api.CodeUnavailable, Message: fmt.Sprintf("%s does not fit node %s of cluster %s: %v", s.dir.file(fileCert), s.identity.NodeID, s.identity.ClusterID, err),
			Next: "put back the files of this node; the data directory mixes two nodes or clusters"}
	}
	return nil
}

// signFor issues a certificate for a node of this cluster.
func (s *Server) signFor(a *authority, request []byte, p Peer) ([]byte, error) {
	return a.sign(request, nodeName{clusterID: s.identity.ClusterID, nodeID: p.ID, name: p.Name, addresses: hostsOf(p.Address)}, time.Now(), s.cfg.CertificateLife)
}

// hostsOf are the hosts under which a node with that address is reached.
// Loopback is among them, so that a client on the machine itself connects.
func hostsOf(address string) []string {
	hosts := []string{"127.0.0.1", "::1", "localhost"}
	if host, _, err := net.SplitHostPort(address); err == nil && host != "" {
		hosts = append(hosts, host)
	}
	return hosts
}

// renewWith makes a new key, has it signed, and uses it from then on. Open
// connections keep the certificate they began with.
func (s *Server) renewWith(sign func(request []byte) ([]byte, error)) error {
	key, request, err := newRequest()
	if err != nil {
		return err
	}
	der, err := sign(request)
	if err != nil {
		return err
	}
	cert, err := certificateOf(der, key, s.trust.ca)
	if err != nil {
		return err
	}
	if err := s.dir.writeKeyPair(key, der); err != nil {
		return err
	}
	s.cert.Store(cert)
	return nil
}

// renewCertificate renews the node's certificate at two thirds of its life,
// and at once when the node's address is not in it.
func (s *Server) renewCertificate(ctx context.Context) {
	for {
		wait := time.Until(s.renewAt())
		if !waitFor(ctx, max(wait, 0)) {
			return
		}
		if err := s.renewNow(ctx); err != nil {
			s.logger.Warn("the node's certificate is not renewed yet", "until", s.cert.Load().Leaf.NotAfter, "error", err)
			if !waitFor(ctx, min(renewRetry, s.cfg.CertificateLife/20)) {
				return
			}
			continue
		}
		s.logger.Info("the node's certificate was renewed", "until", s.cert.Load().Leaf.NotAfter)
	}
}

func (s *Server) renewAt() time.Time {
	leaf := s.cert.Load().Leaf
	if host, _, err := net.SplitHostPort(s.self); err == nil && leaf.VerifyHostname(host) != nil {
		return time.Now()
	}
	begin := leaf.NotBefore.Add(certificateBackdate)
	return begin.Add(leaf.NotAfter.Sub(begin) * 2 / 3)
}

// renewNow signs with the CA key if this node has it, and asks the leader
// otherwise.
func (s *Server) renewNow(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	return s.renewWith(func(request []byte) ([]byte, error) {
		if a, err := s.authority(); err == nil {
			return s.signFor(a, request, s.Self())
		}
		leader, client, err := s.leaderClient(ctx)
		if err != nil {
			return nil, err
		}
		signed, err := client.Sign(ctx, &rpc.Sign{Request: request, Address: s.self})
		if err != nil {
			return nil, fmt.Errorf("ask %s for a certificate: %w", leader.Name, err)
		}
		return signed.Certificate, nil
	})
}

// admitNode refuses nodes that were removed, wherever they connect.
func (s *Server) admitNode(nodeID string) error {
	if r := fsm.RemovedNodes.Get(s.state.Read(), nodeID); r != nil {
		return api.Errorf(api.CodeForbidden, "the node was removed from the cluster: %s", r.Reason).On(api.KindNode, r.Node).
			Do("empty its data directory and join again")
	}
	return nil
}

// watchRemoval ends the process of a node that was removed. Its own replica
// says so if the removal reached it; else the peers do, which also learn from
// the question where this node listens now.
func (s *Server) watchRemoval(ctx context.Context) {
	for waitFor(ctx, removalPoll) {
		if err := s.admitNode(s.identity.NodeID); err != nil {
			s.end(Fatal{Err: err, ExitStatus: ExitError})
			return
		}
		removed := func(id string) bool { return s.admitNode(id) != nil }
		s.mux.dropNode(removed)
		s.trans.inbound.forget(removed)
		if _, ok := s.Leader(); ok {
			continue
		}
		if s.removedSayPeers(ctx) {
			s.end(Fatal{ExitStatus: ExitError, Err: api.Errorf(api.CodeForbidden, "this node was removed from the cluster").
				On(api.KindNode, s.identity.Name).Do("empty its data directory and join again")})
			return
		}
	}
}

func (s *Server) removedSayPeers(ctx context.Context) bool {
	for i, p := range s.others() {
		if i == removalPeers {
			break
		}
		client, err := s.peers.to(p.ID)
		if err != nil {
			continue
		}
		call, cancel := context.WithTimeout(ctx, removalAnswer)
		status, err := client.Status(call, &rpc.Hello{Address: s.self})
		cancel()
		if err == nil && status.CallerRemoved {
			return true
		}
	}
	return false
}

// waitFor sleeps and reports whether ctx is still alive.
func waitFor(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
