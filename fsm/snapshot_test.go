package fsm_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"testing"

	"github.com/debvisor/debvisor/fsm"
)

// resealed is a snapshot with one thing replaced by another of the same length
// and a trailer that matches.
func resealed(t *testing.T, snapshot []byte, from, to string) []byte {
	t.Helper()
	const trailer = 5 + sha256.Size
	body := bytes.Replace(snapshot[:len(snapshot)-trailer], []byte(from), []byte(to), 1)
	if len(from) != len(to) || bytes.Equal(body, snapshot[:len(snapshot)-trailer]) {
		t.Fatalf("%q is not in the snapshot", from)
	}
	sum := sha256.Sum256(body)
	out := append(bytes.Clone(body), snapshot[len(snapshot)-trailer:len(snapshot)-sha256.Size]...)
	return append(out, sum[:]...)
}

func TestRestoreRefusesRowsThatDoNotAddUp(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	var buf bytes.Buffer
	if _, err := c.f.Snapshot().WriteTo(&buf); err != nil {
		t.Fatal(err)
	}
	bad := resealed(t, buf.Bytes(), "127.0.0.1:7443", "127.0.0.1:7444")
	if err := fsm.New().Restore(bytes.NewReader(bad)); !errors.Is(err, fsm.ErrSnapshot) {
		t.Fatalf("a changed row under a right checksum: got %v, want ErrSnapshot", err)
	}
	unknown := resealed(t, buf.Bytes(), "\x00\x00\x00\x06tenant", "\x00\x00\x00\x06tenamt")
	if err := fsm.New().Restore(bytes.NewReader(unknown)); !errors.Is(err, fsm.ErrUpgrade) {
		t.Fatalf("an unknown kind: got %v, want ErrUpgrade", err)
	}
	if _, err := fsm.VerifySnapshot(bytes.NewReader(bad)); err == nil {
		t.Fatal("verified a snapshot that cannot be restored")
	}
	info, err := fsm.VerifySnapshot(bytes.NewReader(buf.Bytes()))
	if v := c.f.Read(); err != nil || info.Index != v.Index() || info.StateHash != v.StateHash() || info.Chain != v.Chain() {
		t.Fatalf("got %+v, %v", info, err)
	}
}
