package fsm_test

import (
	"encoding/json"
	"testing"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// raw makes an entry whose body was not made by this program.
func raw(op, body string) fsm.Entry { return fsm.Entry{Op: op, Body: json.RawMessage(body)} }

// A name that no object can have reaches the log inside an apply, where the
// HTTP API does not look: an index must not stop the node over it.
func TestANameWithNULNamesNothing(t *testing.T) {
	t.Parallel()
	for _, e := range []fsm.Entry{
		raw("vm.power", `{"tenant":"default","name":"a\u0000b","power":"on"}`),
		raw("vm.delete", `{"tenant":"default\u0000","name":"a","modified":1}`),
		raw("pool.delete", `{"name":"\u0000","modified":1}`),
		raw("task.submit", `{"name":"t1","verb":"vm.stop","kind":"vm","object":"default/\u0000"}`),
		raw("task.cancel", `{"name":"\u0000"}`),
		raw("api_key.delete", `{"name":"\u0000"}`),
		raw("join_token.delete", `{"name":"\u0000"}`),
		raw("node.join", `{"id":"x","name":"n","address":"a","token_hash":"\u0000"}`),
		raw("node.register", `{"id":"\u0000","prev_epoch":0,"nonce":"","address":"a"}`),
		raw("node.schedule", `{"node":"\u0000","unschedulable":true}`),
		raw("apply", `{"operations":[{"op":"vm.power","body":{"tenant":"default","name":"\u0000","power":"on"}}]}`),
		raw("apply", `{"operations":[],"revisions":{"vm/default/\u0000":3}}`),
	} {
		c := newCluster(t)
		if out := c.propose(e); out.Err == nil {
			t.Errorf("%s %s was carried out", e.Op, e.Body)
		}
	}
	v := newCluster(t).f.Read()
	for _, key := range []string{"\x00", "default/\x00"} {
		if fsm.VMs.Get(v, key) != nil || fsm.VMs.JSON(v, key) != nil {
			t.Errorf("key %q names a VM", key)
		}
		for range fsm.VMs.Prefix(v, key) {
			t.Errorf("prefix %q has a VM", key)
		}
		for range fsm.VMs.After(v, key) {
			t.Errorf("a page after %q has a VM", key)
		}
	}
	for range fsm.VMs.By(v, "id_of", "\x00") {
		t.Error("an ID with NUL names a VM")
	}
}

// Files and replicas go by ID: two objects of one ID would share a disk, also
// between tenants.
func TestAnIDBelongsToOneVolumeOrImage(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	id := "22222222-2222-4222-8222-222222222222"
	put(c, fsm.Tenants.Put, api.Tenant{Meta: api.Meta{Name: "other"}})
	volume := api.Volume{Meta: api.Meta{ID: id, Name: "a", Tenant: "default"}, Pool: "local", SizeBytes: api.GiB, Node: "node1"}
	if out := put(c, fsm.Volumes.Put, volume); out.Err != nil {
		t.Fatal(out.Err)
	}
	refused := func(out fsm.Outcome, what string) {
		t.Helper()
		if out.Err == nil || out.Err.Code != api.CodeInvalid || out.Err.Field != "id" {
			t.Errorf("%s: got %v, want invalid id", what, out.Err)
		}
	}
	theirs := volume
	theirs.Tenant, theirs.Node = "other", ""
	refused(put(c, fsm.Volumes.Put, theirs), "a volume of another tenant")
	image := api.Image{Meta: api.Meta{ID: id, Name: "a", Tenant: "other"}, Format: "raw", SHA256: sha, SizeBytes: 1}
	refused(put(c, fsm.Images.Put, image), "an image with the ID of a volume")
	have := fsm.Volumes.Get(c.f.Read(), "default/a")
	c.do(fsm.Volumes.Delete("default", "a", have.Modified))
	refused(put(c, fsm.Volumes.Put, volume), "a volume whose file is still being removed")
	image.ID = "33333333-3333-4333-8333-333333333333"
	if out := put(c, fsm.Images.Put, image); out.Err != nil {
		t.Fatal(out.Err)
	}
	image.Tenant = "default"
	refused(put(c, fsm.Images.Put, image), "an image of another tenant")
}

const sha = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
