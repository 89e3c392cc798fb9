package cluster_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/cluster"
	"github.com/debvisor/debvisor/fsm"
)

const passphrase = "correct horse battery"

func TestABackupBecomesANewClusterThatOthersJoin(t *testing.T) {
	t.Parallel()
	c := start(t, 3, nil)
	for i := range 30 {
		c.must(c.nodes[i%3], tenant(fmt.Sprint("t", i)))
	}
	var file bytes.Buffer
	if err := c.follower().Backup(t.Context(), &file, passphrase); err != nil {
		t.Fatal(err)
	}
	info, err := cluster.VerifyBackup(bytes.NewReader(file.Bytes()), passphrase)
	if err != nil || info.Records < 30 || info.ClusterID != c.nodes[0].ClusterID() {
		t.Fatalf("verify: %+v %v", info, err)
	}
	for _, n := range c.nodes {
		n.kill()
	}
	restored := &testCluster{t: t}
	first := newNode(t, "new1", nil)
	if _, err := cluster.RestoreBackup(t.Context(), first.cfg, &file, passphrase, cluster.RestoreOptions{Name: "new1"}); err != nil {
		t.Fatalf("restore: %v", err)
	}
	first.open()
	restored.nodes = []*node{first}
	restored.ready(first)
	restored.must(first, tenant("after"))
	for i := range 30 {
		if fsm.Tenants.Get(first.State().Read(), fmt.Sprint("t", i)) == nil {
			t.Fatalf("t%d is gone", i)
		}
	}
	second := newNode(t, "new2", nil)
	restored.join(second, true)
	restored.converged(first, second)
	for _, n := range restored.nodes {
		restored.eventually("the journal verifies on "+n.name, func() bool {
			v, err := n.VerifyJournal(t.Context(), nil)
			return err == nil && v.Records > info.Records
		})
	}
	for _, old := range c.nodes {
		if fsm.Nodes.Get(first.State().Read(), old.name) != nil {
			t.Fatal("a former node is still a member")
		}
	}
}

func TestADamagedBackupIsRefusedAndLeavesNothing(t *testing.T) {
	t.Parallel()
	c := start(t, 1, nil)
	c.must(c.nodes[0], tenant("x"))
	if err := c.nodes[0].Backup(t.Context(), &bytes.Buffer{}, "short"); api.CodeOf(err) != api.CodeInvalid {
		t.Fatalf("a short passphrase: %v", err)
	}
	var file bytes.Buffer
	if err := c.nodes[0].Backup(t.Context(), &file, passphrase); err != nil {
		t.Fatal(err)
	}
	whole := file.Bytes()
	flipped := bytes.Clone(whole)
	flipped[len(flipped)/2] ^= 1
	for name, content := range map[string][]byte{"flipped": flipped, "cut": whole[:len(whole)*2/3], "empty": nil, "text": []byte("hello")} {
		if _, err := cluster.VerifyBackup(bytes.NewReader(content), passphrase); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("verify %s: %v", name, err)
		}
		n := newNode(t, "n", nil)
		if _, err := cluster.RestoreBackup(t.Context(), n.cfg, bytes.NewReader(content), passphrase, cluster.RestoreOptions{Name: "n"}); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("restore %s: %v", name, err)
		}
		if _, err := cluster.ReadIdentity(n.cfg.DataDir); api.CodeOf(err) != api.CodeNotFound {
			t.Errorf("after %s the directory holds a node: %v", name, err)
		}
		if _, err := cluster.RestoreBackup(t.Context(), n.cfg, bytes.NewReader(whole), passphrase, cluster.RestoreOptions{Name: "n"}); err != nil {
			t.Errorf("the good file after %s: %v", name, err)
		}
	}
	if _, err := cluster.VerifyBackup(bytes.NewReader(whole), "another passphrase"); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("wrong passphrase: %v", err)
	}
}
