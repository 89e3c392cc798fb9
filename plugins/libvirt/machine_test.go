package libvirt

import (
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/plugins"
)

const oldMachine = `<domain type='kvm' id='3'>
  <name>default.old</name>
  <uuid>11111111-1111-4111-8111-111111111111</uuid>
  <metadata>
    <mark xmlns="https://debvisor.org/xmlns/libvirt/domain/1" cluster="c" id="11111111-1111-4111-8111-111111111111" gen="1" revision="2" started="" hash="x"/>
  </metadata>
  <memory unit='KiB'>131072</memory>
  <devices>
    <disk type='file' device='disk'><source file='/a &amp; b'/><target dev='vda' bus='virtio'/><address type='pci' slot='0x07'/></disk>
    <channel type='unix'><name>not this one</name></channel>
  </devices>
</domain>`

func TestMachineOfASnapshotKeepsWhatTheGuestKnows(t *testing.T) {
	t.Parallel()
	spec := plugins.DomainSpec{ID: "11111111-1111-4111-8111-111111111111", Name: "default.new<name>", ClusterID: "c", Gen: 7, SpecRevision: 9}
	text, err := remade(oldMachine, spec, time.Unix(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	d, err := decodeDomain(text)
	if err != nil {
		t.Fatal(err)
	}
	m := d.markOf("c")
	if m == nil || m.Gen != 7 || m.Revision != 9 || d.Name != spec.Name || len(d.drift(m, "")) > 0 {
		t.Fatalf("the mark is %+v, the name %q: %s", m, d.Name, text)
	}
	for _, kept := range []string{"<address type='pci' slot='0x07'/>", "<name>not this one</name>", "<source file='/a &amp; b'/>", "<memory unit='KiB'>131072</memory>"} {
		if !strings.Contains(text, kept) {
			t.Errorf("%s is lost: %s", kept, text)
		}
	}
	spec.ID = "22222222-2222-4222-8222-222222222222"
	if _, err := remade(oldMachine, spec, time.Unix(0, 0)); err == nil {
		t.Error("the machine of another guest is taken")
	}
}

func FuzzMachineOfASnapshot(f *testing.F) {
	f.Add(oldMachine)
	f.Add("<domain><name/><metadata><metadata/></metadata><name>x</name></domain>")
	f.Add("<domain><metadata>")
	f.Fuzz(func(t *testing.T, machine string) {
		spec := plugins.DomainSpec{ID: "11111111-1111-4111-8111-111111111111", Name: "default.new", ClusterID: "c", Gen: 7, SpecRevision: 9}
		text, err := remade(machine, spec, time.Unix(0, 0))
		if err != nil {
			return
		}
		if d, err := decodeDomain(text); err != nil || d.markOf("c") == nil || d.markOf("c").Gen != 7 || d.Name != spec.Name {
			t.Errorf("%q became %q: %v", machine, text, err)
		}
	})
}

func FuzzAnswersOfTheMonitor(f *testing.F) {
	f.Add(`{"return":[{"id":"a","status":"concluded","error":"no\u001b[31m"}],"id":"libvirt-1"}`)
	f.Add(`{"error":{"class":"GenericError","desc":"no"}}`)
	f.Fuzz(func(t *testing.T, text string) {
		var jobs []job
		if err := decodeAnswer("query-jobs", text, &jobs); err != nil && strings.ContainsRune(err.Error(), 0x1b) {
			t.Errorf("an escape gets through: %q", err)
		}
	})
}
