package harness

import (
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"testing"
)

const networkTries = 32

// Single makes a cluster of one node the way real hosts do: init, then agent.
// It is ready when Single returns.
func Single(t testing.TB) *Cluster {
	t.Helper()
	dir, address := t.TempDir(), freeAddress(t)
	data, key := filepath.Join(dir, "node1", "data"), filepath.Join(dir, "admin.key")
	c := Own(t, dir, "DEBVISOR_ADDR="+address, "DEBVISOR_CACERT="+filepath.Join(data, "ca.pem"), "DEBVISOR_KEY_FILE="+key)
	n := c.Add("node1", address)
	c.Must("init", "--data-dir", n.DataDir(), "--name", n.Name, "--listen", address, "--advertise", address, "--key-file", key)
	c.ReadKey(key)
	n.Start()
	t.Logf("one node ready after %v", n.Ready(ReadyTimeout))
	return c
}

// freeAddress is a loopback address on which nobody listens.
func freeAddress(t testing.TB) string {
	t.Helper()
	for range networkTries {
		address := fmt.Sprintf("127.%d.%d.1:7443", 16+rand.IntN(224), rand.IntN(256))
		if l, err := net.Listen("tcp", address); err == nil {
			_ = l.Close()
			return address
		}
	}
	t.Fatal("no free loopback address")
	return ""
}
