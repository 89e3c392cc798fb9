package cluster

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/debvisor/debvisor/api"
)

// Lives of certificates.
const (
	caLife              = 10 * 365 * 24 * time.Hour
	CertificateLife     = 30 * 24 * time.Hour // of a node certificate, unless Config says otherwise
	certificateLifeMin  = time.Minute
	certificateBackdate = 5 * time.Minute // for clocks that are behind
	addressesMax        = 32              // names and addresses in one certificate
)

const (
	uriScheme = "debvisor"
	roleNode  = "node"
)

// authority is the cluster's CA: its certificate everywhere, its key on voters.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer // nil where only the certificate is known
}

// newAuthority makes the CA of a new cluster.
func newAuthority(clusterID string, now time.Time) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make CA key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "debvisor cluster " + clusterID},
		NotBefore:    now.Add(-certificateBackdate),
		NotAfter:     now.Add(caLife),
		IsCA:         true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		URIs:     []*url.URL{{Scheme: uriScheme, Host: clusterID}},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make CA certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make CA certificate: %w", err)
	}
	return &authority{cert: cert, key: key}, nil
}

// pin is the SHA-256 of the CA certificate, which join tokens carry.
func pin(cert *x509.Certificate) [sha256.Size]byte { return sha256.Sum256(cert.Raw) }

// nodeName is what a node certificate says about its holder.
type nodeName struct {
	clusterID string
	nodeID    string
	name      string   // of the node
	addresses []string // hosts without ports
}

// sign issues a node certificate for the public key of a request. Of the
// request itself only the key counts: names come from the caller, who knows
// which node asks.
func (a *authority) sign(requestDER []byte, n nodeName, now time.Time, life time.Duration) ([]byte, error) {
	if a.key == nil {
		return nil, api.Errorf(api.CodeUnavailable, "this node does not hold the CA key").Do("ask a voter")
	}
	request, err := x509.ParseCertificateRequest(requestDER)
	if err != nil {
		return nil, api.Invalid("request", "is no certificate request")
	}
	if err := request.CheckSignature(); err != nil {
		return nil, api.Invalid("request", "is not signed by its own key")
	}
	if k, ok := request.PublicKey.(*ecdsa.PublicKey); !ok || k.Curve != elliptic.P256() {
		return nil, api.Invalid("request", "has an unexpected key").Allow("ECDSA on P-256")
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: n.name, OrganizationalUnit: []string{roleNode}},
		NotBefore:    now.Add(-certificateBackdate),
		NotAfter:     now.Add(life),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:         []*url.URL{nodeURI(n.clusterID, n.nodeID)},
		DNSNames:     []string{n.nodeID, n.name},
	}
	for _, host := range n.addresses {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else if host != "" && host != n.name {
			template.DNSNames = append(template.DNSNames, host)
		}
		if len(template.IPAddresses)+len(template.DNSNames) >= addressesMax {
			break
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, request.PublicKey, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	return der, nil
}

func nodeURI(clusterID, nodeID string) *url.URL {
	return &url.URL{Scheme: uriScheme, Host: clusterID, Path: "/" + roleNode + "/" + nodeID}
}

// newRequest makes a key and a certificate request for it.
func newRequest() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make node key: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make certificate request: %w", err)
	}
	return key, der, nil
}

func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	return n, nil
}

// trust decides which certificates belong to nodes of this cluster.
type trust struct {
	clusterID string
	ca        *x509.Certificate
	pool      *x509.CertPool
}

func newTrust(clusterID string, ca *x509.Certificate) *trust {
	t := &trust{clusterID: clusterID, ca: ca, pool: x509.NewCertPool()}
	t.pool.AddCert(ca)
	return t
}

// nodeOf verifies a chain and returns the node ID in it. The certificate must
// be this CA's, name this cluster, and carry the role of a node.
func (t *trust) nodeOf(chain []*x509.Certificate) (string, error) {
	if len(chain) == 0 {
		return "", errors.New("the peer sent no certificate")
	}
	leaf := chain[0]
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: t.pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return "", fmt.Errorf("the peer's certificate is not of this cluster: %w", err)
	}
	if len(leaf.URIs) != 1 || leaf.IsCA {
		return "", errors.New("the peer's certificate names no node")
	}
	uri := leaf.URIs[0]
	if uri.Scheme != uriScheme || uri.Host != t.clusterID {
		return "", errors.New("the peer's certificate is of another cluster")
	}
	id, ok := strings.CutPrefix(uri.Path, "/"+roleNode+"/")
	if !ok || id == "" || len(leaf.Subject.OrganizationalUnit) != 1 || leaf.Subject.OrganizationalUnit[0] != roleNode {
		return "", errors.New("the peer's certificate is not a node's")
	}
	return id, nil
}

// certificateOf joins a certificate and its key for TLS, with the CA behind it.
func certificateOf(der []byte, key crypto.Signer, ca *x509.Certificate) (*tls.Certificate, error) {
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("node certificate: %w", err)
	}
	pub, ok := key.Public().(*ecdsa.PublicKey)
	if !ok || !pub.Equal(leaf.PublicKey) {
		return nil, errors.New("the node certificate does not belong to the node key")
	}
	if err := leaf.CheckSignatureFrom(ca); err != nil {
		return nil, fmt.Errorf("the node certificate is not this cluster's: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der, ca.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

func encodeCertificate(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func decodeCertificate(text []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("no certificate in PEM")
	}
	return x509.ParseCertificate(block.Bytes)
}

func decodeKey(text []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("no private key in PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("the private key cannot sign")
	}
	return signer, nil
}
