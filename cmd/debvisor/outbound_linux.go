package main

import (
	"crypto/x509"
	"fmt"
	"net/http"
	"net/netip"
	"os"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
	"github.com/debvisor/debvisor/plugins/outbound"
)

// newOutbound makes the client for addresses that users name.
func (n *node) newOutbound() (*http.Client, error) {
	allow, err := outbound.ParseAllow(n.config.OutboundAllow)
	if err != nil {
		return nil, err
	}
	config := outbound.Config{Allow: allow, AllowHTTP: n.config.OutboundHTTP, Own: n.isMember}
	if n.config.OutboundCA != "" {
		pem, err := os.ReadFile(n.config.OutboundCA)
		if err != nil {
			return nil, fmt.Errorf("read outbound_ca: %w", err)
		}
		if config.Roots, err = x509.SystemCertPool(); err != nil {
			config.Roots = x509.NewCertPool() // this machine trusts nobody else
		}
		if !config.Roots.AppendCertsFromPEM(pem) {
			return nil, api.Invalid("outbound_ca", "%s holds no certificate", n.config.OutboundCA).Allow("certificates in PEM form")
		}
	}
	return outbound.New(config), nil
}

// isMember reports whether an address is the port of a node of this cluster.
func (n *node) isMember(to netip.AddrPort) bool {
	for m := range fsm.Nodes.All(n.server.State().Read()) {
		if at, err := netip.ParseAddrPort(m.Address); err == nil && netip.AddrPortFrom(at.Addr().Unmap(), at.Port()) == to {
			return true
		}
	}
	return false
}
