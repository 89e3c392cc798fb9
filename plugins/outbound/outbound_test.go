package outbound_test

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins/outbound"
)

// names is a resolver of fixed answers.
type names map[string][]string

func (n names) lookup(_ context.Context, host string) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, s := range n[host] {
		out = append(out, netip.MustParseAddr(s))
	}
	if out == nil {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return out, nil
}

func loopback() []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")} }

// site is a TLS server on the loopback interface that counts its requests.
func site(t testing.TB, serve http.HandlerFunc) (*httptest.Server, *atomic.Int64, *x509.CertPool) {
	t.Helper()
	var asked atomic.Int64
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		serve(w, r)
	}))
	t.Cleanup(s.Close)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	return s, &asked, roots
}

func request(t testing.TB, c *http.Client, method, target string) error {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, target, nil)
	if err != nil {
		return err
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

func wantRefused(t testing.TB, err error, what string) {
	t.Helper()
	if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != api.CodeInvalid || e.Field != "url" {
		t.Errorf("%s: got %v, want a refusal of the url", what, err)
	}
}

// notPublic spells addresses that no user may make a node talk to.
func notPublic() []string {
	return []string{
		"127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "100.64.0.1", "100.100.100.200", "169.254.169.254", "172.16.0.1", "172.31.255.255",
		"192.0.0.192", "192.168.1.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
		"[::]", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:8.8.8.8]", "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[64:ff9b::a9fe:a9fe]", "[64:ff9b:1::1]",
		"[fc00::1]", "[fd00:ec2::254]", "[fe80::1]", "[fe80::1%25lo]", "[fec0::1]", "[ff02::1]", "[100::1]", "[2001:db8::1]", "[2001::1]", "[2002:7f00:1::1]",
		"0x7f.1", "0x7f000001", "2130706433", "017700000001", "0177.0.0.1", "127.1", "127.0.0.1.", "1", "0", "①②⑦.0.0.1", "a..b", "localhost%00",
	}
}

func TestAddressesThatAreNotPublicAreRefusedInAllTheirSpellings(t *testing.T) {
	t.Parallel()
	dialled := func(context.Context, string) ([]netip.Addr, error) {
		return nil, errors.New("a name was looked up")
	}
	c := outbound.New(outbound.Config{Lookup: dialled})
	for _, host := range notPublic() {
		for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost} {
			err := request(t, c, method, "https://"+host+"/image")
			var malformed *url.Error
			if _, typed := errors.AsType[*api.Error](err); !typed && errors.As(err, &malformed) && malformed.Op == "parse" {
				continue // no URL at all
			}
			wantRefused(t, err, method+" "+host)
		}
	}
}

func TestANameThatLeadsInsideIsRefused(t *testing.T) {
	t.Parallel()
	s, asked, roots := site(t, func(http.ResponseWriter, *http.Request) {})
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	n := names{"inside.example": {"127.0.0.1"}, "both.example": {"93.184.216.34", "127.0.0.1"}, "mapped.example": {"::ffff:127.0.0.1"}, "meta.example": {"169.254.169.254"}, "nat.example": {"64:ff9b::7f00:1"}}
	c := outbound.New(outbound.Config{Lookup: n.lookup, Roots: roots})
	for host := range n {
		wantRefused(t, request(t, c, http.MethodGet, "https://"+host+":"+port+"/"), host)
	}
	if asked.Load() != 0 {
		t.Errorf("%d requests arrived", asked.Load())
	}
}

func TestTheAddressThatWasCheckedIsTheOneThatIsDialled(t *testing.T) {
	t.Parallel()
	s, asked, roots := site(t, func(http.ResponseWriter, *http.Request) {})
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	var looked atomic.Int64
	c := outbound.New(outbound.Config{Roots: roots, Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")},
		Lookup: func(context.Context, string) ([]netip.Addr, error) {
			if looked.Add(1) > 1 { // a second look would lead elsewhere
				return []netip.Addr{netip.MustParseAddr("169.254.169.254")}, nil
			}
			return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
		}})
	if err := request(t, c, http.MethodGet, "https://example.com:"+port+"/"); err != nil {
		t.Fatal(err)
	}
	if looked.Load() != 1 || asked.Load() != 1 {
		t.Errorf("looked up %d times, asked %d times", looked.Load(), asked.Load())
	}
}

func TestARedirectInsideIsRefused(t *testing.T) {
	t.Parallel()
	inside, asked, _ := site(t, func(http.ResponseWriter, *http.Request) {})
	var to string
	s, _, roots := site(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, to, http.StatusFound) })
	outer, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	own := inside.Listener.Addr().(*net.TCPAddr).AddrPort()
	c := outbound.New(outbound.Config{Allow: loopback(), Roots: roots, Own: func(a netip.AddrPort) bool { return a == own }})
	for _, target := range []string{
		inside.URL, "https://169.254.169.254/latest/meta-data", "https://[::1]/", "https://10.0.0.1/", "http://" + outer.Host + "/", "file:///etc/passwd",
		"gopher://example.com/", "https://user:secret@" + outer.Host + "/", "https://0x7f000001/", s.URL + "/again",
	} {
		to = target
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			err := request(t, c, method, s.URL)
			wantRefused(t, err, method+" redirected to "+target)
			if err != nil && strings.Contains(errors.Unwrap(err).Error(), "secret") {
				t.Errorf("the refusal tells the password: %v", err)
			}
		}
	}
	if asked.Load() != 0 {
		t.Errorf("%d requests arrived inside", asked.Load())
	}
}

func TestProxiesOfTheEnvironmentAreNotUsed(t *testing.T) {
	proxy, asked, _ := site(t, func(http.ResponseWriter, *http.Request) {})
	t.Setenv("HTTPS_PROXY", proxy.URL)
	t.Setenv("https_proxy", proxy.URL)
	s, _, roots := site(t, func(http.ResponseWriter, *http.Request) {})
	c := outbound.New(outbound.Config{Allow: loopback(), Roots: roots})
	if err := request(t, c, http.MethodGet, s.URL); err != nil {
		t.Error(err)
	}
	if asked.Load() != 0 {
		t.Error("the proxy was asked")
	}
}

func TestPlainHTTPNeedsAnOption(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(s.Close)
	wantRefused(t, request(t, outbound.New(outbound.Config{Allow: loopback()}), http.MethodGet, s.URL), "plain http")
	if err := request(t, outbound.New(outbound.Config{Allow: loopback(), AllowHTTP: true}), http.MethodGet, s.URL); err != nil {
		t.Errorf("with the option: %v", err)
	}
}

func TestALongHeaderIsCutOff(t *testing.T) {
	t.Parallel()
	s, _, roots := site(t, func(w http.ResponseWriter, _ *http.Request) {
		for range 1000 {
			w.Header().Add("X-Long", strings.Repeat("x", 1000))
		}
	})
	if err := request(t, outbound.New(outbound.Config{Allow: loopback(), Roots: roots}), http.MethodGet, s.URL); err == nil {
		t.Error("a header of a megabyte is taken")
	}
}

func TestAllowTakesNetworksOnly(t *testing.T) {
	t.Parallel()
	if got, err := outbound.ParseAllow([]string{"10.1.0.0/16", "fd00::/8", "192.168.1.7"}); err != nil || len(got) != 3 || got[2].Bits() != 32 {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{"", "10.1.2.3/16", "all", "::ffff:10.0.0.0/104", "10.0.0.0/33", "fe80::1%eth0"} {
		if _, err := outbound.ParseAllow([]string{bad}); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%q: got %v, want CodeInvalid", bad, err)
		}
	}
}

// FuzzNoURLLeadsInside: whatever the URL and whatever its name resolves to,
// nothing that is dialled is a private address.
func FuzzNoURLLeadsInside(f *testing.F) {
	for _, host := range notPublic() {
		f.Add("https://"+host+"/x", []byte{127, 0, 0, 1})
	}
	f.Add("https://example.com:7443/", []byte{0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0, 127, 0, 0, 1})
	f.Add("https://a@b:c@d/", []byte{8, 8, 8, 8})
	f.Fuzz(func(t *testing.T, target string, answer []byte) {
		ctx, cancel := context.WithCancel(t.Context())
		ip, ok := netip.AddrFromSlice(answer)
		c := outbound.New(outbound.Config{Lookup: func(context.Context, string) ([]netip.Addr, error) {
			if !ok {
				return nil, errors.New("no answer")
			}
			if public(ip.Unmap()) {
				cancel() // nothing public is asked by a test
				return nil, ctx.Err()
			}
			return []netip.Addr{ip}, nil
		}})
		u, err := url.Parse(target)
		if err != nil {
			return
		}
		if literal, err := netip.ParseAddr(strings.TrimSuffix(u.Hostname(), ".")); err == nil && public(literal) {
			return
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodHead, target, nil)
		if err != nil {
			return
		}
		resp, err := c.Do(req)
		if err == nil {
			_ = resp.Body.Close()
			t.Fatalf("%q with %v was asked", target, ip)
		}
		if op, dialled := errors.AsType[*net.OpError](err); dialled && op.Op == "dial" {
			if _, refused := errors.AsType[*api.Error](err); !refused {
				t.Fatalf("%q with %v was dialled: %v", target, ip, err)
			}
		}
	})
}

// public is a second, coarser opinion on what may be dialled.
func public(ip netip.Addr) bool {
	return ip.IsGlobalUnicast() && !ip.IsPrivate() && !ip.Is4In6() && (ip.Is4() || netip.MustParsePrefix("2000::/3").Contains(ip))
}
