// Package outbound makes the HTTP client for addresses that a user names:
// images now, whatever else is fetched or told to the outside later. Such an
// address may be chosen to make a node talk to what only the node can reach:
// its own services, its neighbours, the metadata service of a cloud. So the
// client refuses them before a packet leaves, on every hop of a redirect and
// for every method, and dials the very address that it has checked.
//
// It knows nothing of debvisor's objects; whoever uses it gets an *http.Client.
package outbound

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/debvisor/debvisor/api"
)

// Limits of the client.
const (
	RedirectsMax     = 5
	AddressesMax     = 16               // of one name that are looked at
	HeaderBytesMax   = 64 << 10         // of an answer
	resolveTimeout   = 10 * time.Second // for a name
	dialTimeout      = 10 * time.Second // for one address
	handshakeTimeout = 10 * time.Second
	headerTimeout    = 30 * time.Second // until the answer's header has come
	idleTimeout      = 10 * time.Second // of a connection that nobody uses
)

// Config says what may be reached beyond public addresses.
type Config struct {
	Allow     []netip.Prefix // networks that are reachable although they are private
	AllowHTTP bool           // http:// as well as https://
	Roots     *x509.CertPool // nil: the system's

	// Own reports whether an address is a port of this cluster, which is
	// refused even in an allowed network. nil: none is.
	Own func(netip.AddrPort) bool
	// Lookup resolves a name; nil: the system's resolver.
	Lookup func(ctx context.Context, host string) ([]netip.Addr, error)
}

// guard decides which addresses may be dialled.
type guard struct {
	Config
	interfaces func() ([]net.Addr, error)
}

// New makes a client. It follows at most RedirectsMax redirects, uses no proxy,
// whatever the environment says, and asks for no compression. It has no timeout
// of its own for bodies: give each request a context.
func New(config Config) *http.Client {
	g := &guard{Config: config, interfaces: net.InterfaceAddrs}
	if g.Lookup == nil {
		g.Lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	transport := &http.Transport{
		DialContext:            g.dial,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: config.Roots},
		ForceAttemptHTTP2:      true,
		TLSHandshakeTimeout:    handshakeTimeout,
		ResponseHeaderTimeout:  headerTimeout,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: HeaderBytesMax,
		DisableCompression:     true, // a body is what it is long
	}
	return &http.Client{Transport: &checked{guard: g, next: transport}, CheckRedirect: func(req *http.Request, via []*http.Request) error {
		if len(via) > RedirectsMax {
			return api.Invalid("url", "redirects more than %d times", RedirectsMax)
		}
		if via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
			return api.Invalid("url", "redirects from https to %s", req.URL.Scheme).Allow("https")
		}
		req.Header.Del("Referer") // where it came from is nobody's business
		return nil
	}}
}

// checked looks at the URL of every request, redirected ones included, before
// anything is resolved.
type checked struct {
	guard *guard
	next  http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (c *checked) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := c.guard.checkURL(req.URL); err != nil {
		if req.Body != nil {
			_ = req.Body.Close()
		}
		return nil, err
	}
	return c.next.RoundTrip(req)
}

func (g *guard) checkURL(u *url.URL) error {
	refuse := func(format string, args ...any) *api.Error { return api.Invalid("url", format, args...) }
	switch {
	case u.Scheme == "http" && !g.AllowHTTP:
		return refuse("is not encrypted").Allow("https").Do("use https, or set outbound_http in the configuration of the nodes")
	case u.Scheme != "https" && u.Scheme != "http":
		return refuse("has the scheme %q", u.Scheme).Allow("https")
	case u.User != nil:
		return refuse("holds a user name or password").Do("take them out of the URL")
	case u.Opaque != "" || u.Hostname() == "":
		return refuse("names no host")
	}
	host := strings.TrimSuffix(u.Hostname(), ".")
	ip, err := netip.ParseAddr(host)
	switch {
	case err == nil:
		return g.checkAddr(netip.AddrPortFrom(ip, portOf(u)))
	case !isName(host):
		return refuse("has the host %q", host).Allow("a DNS name, or an IP address in its usual form")
	}
	return nil
}

func portOf(u *url.URL) uint16 {
	if u.Port() == "" {
		if u.Scheme == "http" {
			return 80
		}
		return 443
	}
	port, err := netip.ParseAddrPort("0.0.0.0:" + u.Port())
	if err != nil {
		return 0 // is refused
	}
	return port.Port()
}

// isName reports whether the host is a DNS name. What ends in a number is an
// IP address in one of the old spellings (0x7f.1, 2130706433, 0177.0.0.1),
// which resolvers read and we do not.
func isName(host string) bool {
	const nameMax, labelMax = 253, 63
	if host == "" || len(host) > nameMax {
		return false
	}
	labels := strings.Split(strings.ToLower(host), ".")
	for _, l := range labels {
		if l == "" || len(l) > labelMax || strings.Trim(l, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	last := labels[len(labels)-1]
	return strings.Trim(last, "0123456789") != "" && !strings.HasPrefix(last, "0x")
}

// dial resolves the host, checks every address of it, and connects to one of
// them. A name with one address that is refused is refused: whoever answers for
// it would choose which of them we take.
func (g *guard) dial(ctx context.Context, network, hostPort string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(hostPort)
	if err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	addrs, err := g.resolve(ctx, strings.TrimSuffix(host, "."))
	if err != nil {
		return nil, err
	}
	var all []netip.AddrPort
	for _, ip := range addrs {
		to, err := netip.ParseAddrPort(net.JoinHostPort(ip.String(), port))
		if err != nil {
			return nil, api.Invalid("url", "has the port %q", port).Allow("1 to 65535")
		}
		if err := g.checkAddr(to); err != nil {
			return nil, err
		}
		all = append(all, to)
	}
	dialer := &net.Dialer{Timeout: dialTimeout, Control: g.control}
	failed := errors.New("no address")
	for _, to := range all {
		conn, err := dialer.DialContext(ctx, network, to.String())
		if err == nil {
			return conn, nil
		}
		failed = err
		if ctx.Err() != nil {
			break
		}
	}
	return nil, failed
}

func (g *guard) resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{ip}, nil
	}
	if !isName(host) {
		return nil, api.Invalid("url", "has the host %q", host).Allow("a DNS name, or an IP address in its usual form")
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	addrs, err := g.Lookup(ctx, host)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", host, err)
	}
	if len(addrs) == 0 || len(addrs) > AddressesMax {
		return nil, api.Errorf(api.CodeUnavailable, "the name %s has %d addresses", host, len(addrs))
	}
	for i := range addrs {
		if addrs[i].Is4In6() && !strings.Contains(host, ":") {
			addrs[i] = addrs[i].Unmap() // how some resolvers write IPv4
		}
	}
	return addrs, nil
}

// control looks once more, at what the kernel is about to be told.
func (g *guard) control(_, address string, _ syscall.RawConn) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("dial %s: %w", address, err)
	}
	return g.checkAddr(to)
}

// checkAddr refuses what no user may make a node talk to.
func (g *guard) checkAddr(to netip.AddrPort) error {
	ip := to.Addr()
	refuse := func(what string) *api.Error {
		return api.Invalid("url", "leads to %s, %s", ip, what).Do("use a public address, or list its network in outbound_allow of the nodes' configuration")
	}
	if to.Port() == 0 {
		return api.Invalid("url", "has no valid port").Allow("1 to 65535")
	}
	if g.Own != nil && g.Own(netip.AddrPortFrom(ip.Unmap(), to.Port())) {
		return api.Invalid("url", "leads to %s, a node of this cluster", to)
	}
	if slices.ContainsFunc(g.Allow, func(p netip.Prefix) bool { return p.Contains(ip) }) {
		return nil
	}
	if what := reserved(ip); what != "" {
		return refuse(what)
	}
	own, err := g.interfaces()
	if err != nil {
		return fmt.Errorf("list the addresses of this machine: %w", err)
	}
	for _, a := range own {
		if n, ok := a.(*net.IPNet); ok {
			if mine, ok := netip.AddrFromSlice(n.IP); ok && mine.Unmap() == ip {
				return refuse("an address of this machine")
			}
		}
	}
	return nil
}

// special is a block of addresses that are not on the public internet.
type special struct {
	prefix, what string
}

// specials lists what the IANA registries of special-purpose addresses (RFC
// 6890, as of 2025) do not call globally reachable, and what embeds such an
// address. Of IPv6, everything outside 2000::/3 is refused besides.
func specials() []special {
	return []special{
		{"0.0.0.0/8", "which means this host"}, {"10.0.0.0/8", "a private address"}, {"100.64.0.0/10", "a carrier's private address"},
		{"127.0.0.0/8", "the machine itself"}, {"169.254.0.0/16", "a link-local address, where clouds keep metadata"},
		{"172.16.0.0/12", "a private address"}, {"192.0.0.0/24", "a reserved address"}, {"192.0.2.0/24", "an address for documentation"},
		{"192.88.99.0/24", "a relay"}, {"192.168.0.0/16", "a private address"}, {"198.18.0.0/15", "an address for benchmarks"},
		{"198.51.100.0/24", "an address for documentation"}, {"203.0.113.0/24", "an address for documentation"},
		{"224.0.0.0/4", "a multicast address"}, {"240.0.0.0/4", "a reserved address"},
		{"2001::/23", "a reserved address"}, {"2001:db8::/32", "an address for documentation"},
		{"2002::/16", "an IPv4 address in disguise"}, {"3fff::/20", "an address for documentation"},
	}
}

// reserved says what is wrong with an address; empty: it is a public one.
func reserved(ip netip.Addr) string {
	switch {
	case !ip.IsValid() || ip.Zone() != "":
		return "an address of one link"
	case ip.Is4In6():
		return "an IPv4 address in disguise"
	case ip.Is6() && !netip.MustParsePrefix("2000::/3").Contains(ip):
		return "which is not a public address"
	}
	for _, s := range specials() {
		if netip.MustParsePrefix(s.prefix).Contains(ip) {
			return s.what
		}
	}
	return ""
}

// ParseAllow reads networks as "10.1.0.0/16" or single addresses.
func ParseAllow(texts []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for i, s := range texts {
		p, err := netip.ParsePrefix(s)
		if ip, ipErr := netip.ParseAddr(s); err != nil && ipErr == nil && ip.Zone() == "" {
			p, err = netip.PrefixFrom(ip, ip.BitLen()), nil
		}
		if err != nil || p != p.Masked() || p.Addr().Is4In6() {
			return nil, api.Invalid(fmt.Sprintf("outbound_allow[%d]", i), "is %q", s).Allow("a network as 10.1.0.0/16, or an address")
		}
		out = append(out, p)
	}
	return out, nil
}
