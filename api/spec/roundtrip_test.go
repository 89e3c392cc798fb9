package spec_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/spec"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var (
	dnsLabel = rapid.StringMatching(`[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?`)
	// what users write, and what the syntax of HCL could trip over
	anyText  = rapid.SampledFrom([]string{"", "plain", "two words", `"quoted"`, `back\slash`, "${var.x}", "%{if}", "$${x}", "a $ b % c", "ünï", "日本", "it's {}", "# no comment", "null", "1e9"})
	anyLines = rapid.SampledFrom([]string{"", "line\n", "a\n\tb\r\n", "${x}\n%{ y }\n", "\x01\x7f\u2028", "<<EOT\nEOT\n", "\U0001F600", "a\n\nb"})
	anyPairs = rapid.Custom(func(t *rapid.T) map[string]string {
		m := rapid.MapOfN(rapid.SampledFrom([]string{"app", "for", "null", "if", "true", "example.org/team", "a-b", "0", "_x"}), anyText, 0, 4).Draw(t, "labels")
		if len(m) == 0 {
			return nil
		}
		return m
	})
	anySize = rapid.SampledFrom([]int64{api.MiB, api.GiB, 3 * api.GiB / 2, api.TiB, 5*api.GiB + 1, 1234567})
)

func anyMeta(t *rapid.T, tenant bool) api.Meta {
	m := api.Meta{Name: dnsLabel.Draw(t, "name"), Labels: anyPairs.Draw(t, "labels")}
	if tenant {
		m.Tenant = dnsLabel.Draw(t, "tenant")
	}
	return m
}

var anyVM = rapid.Custom(func(t *rapid.T) *api.VM {
	oneOf := func(values ...string) string { return rapid.SampledFrom(values).Draw(t, values[1]) }
	v := &api.VM{
		Meta: anyMeta(t, true), Description: anyText.Draw(t, "description"), Power: oneOf("", "on", "off"), Firmware: oneOf("", "bios", "uefi"),
		CPUs: rapid.IntRange(1, api.CPUsMax).Draw(t, "cpus"), MemoryBytes: 16 * anySize.Draw(t, "memory"), HA: oneOf("", "none", "lease"),
		Priority: rapid.IntRange(-1000, 1000).Draw(t, "priority"),
		Placement: api.Placement{Strategy: oneOf("", "spread", "pack"), Node: oneOf("", "node1"), Nodes: anyPairs.Draw(t, "nodes"),
			Affinity: anyPairs.Draw(t, "affinity"), AntiAffinity: anyPairs.Draw(t, "anti-affinity")},
	}
	if rapid.Bool().Draw(t, "boot") {
		v.Boot = &api.DirectBoot{Kernel: "k", Initrd: oneOf("", "i"), Args: anyText.Draw(t, "args")}
	}
	for _, name := range rapid.SliceOfNDistinct(dnsLabel, 0, 3, rapid.ID).Draw(t, "disks") {
		d := api.Disk{Name: name, Pool: oneOf("", "local"), Image: oneOf("", "tiny"), SizeBytes: anySize.Draw(t, "size"), Bus: oneOf("", "scsi"), Cache: oneOf("", "none"), ReadOnly: rapid.Bool().Draw(t, "ro")}
		if rapid.Bool().Draw(t, "attach") {
			d = api.Disk{Name: name, Volume: "v-" + name[:1] + name}
		}
		v.Disks = append(v.Disks, d)
	}
	for _, mac := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"52:54:00:00:00:01", "52:54:00:00:00:02"}), 0, 2, rapid.ID).Draw(t, "nics") {
		v.NICs = append(v.NICs, api.NIC{Network: "lan", MAC: mac})
	}
	if rapid.Bool().Draw(t, "seed") {
		v.CloudInit = anySeed(t)
	}
	return v
})

func anySeed(t *rapid.T) *api.CloudInit {
	c := &api.CloudInit{Hostname: dnsLabel.Draw(t, "hostname"), Network: anyLines.Draw(t, "network")}
	for range rapid.IntRange(0, 2).Draw(t, "n") {
		c.Packages = append(c.Packages, "nginx")
		c.Commands = append(c.Commands, []string{anyLines.Draw(t, "command"), anyText.Draw(t, "argument")})
		c.Users = append(c.Users, api.CloudInitUser{Name: dnsLabel.Draw(t, "user"), SSHKeys: []string{anyText.Draw(t, "key")}, Sudo: rapid.Bool().Draw(t, "sudo"), PasswordHash: "$6$a${b}"})
		c.Files = append(c.Files, api.CloudInitFile{Path: rapid.SampledFrom([]string{"/etc/motd", "/a b", `/q"uo\te`, "/a$b", "/{}"}).Draw(t, "path"), Content: anyLines.Draw(t, "content"), Mode: "0600"})
	}
	return c
}

var anyObject = rapid.Custom(func(t *rapid.T) spec.Object {
	switch kind := rapid.SampledFrom([]string{"vm", "config", "tenant", "pool", "network", "image", "volume"}).Draw(t, "kind"); kind {
	case "config":
		c := &api.Config{Meta: anyMeta(t, false), CPUOvercommit: rapid.Float64Range(0.1, 16).Draw(t, "cpu"), MemoryReserve: anySize.Draw(t, "reserve"),
			TaskRetention:    time.Duration(rapid.Int64Range(int64(api.TaskRetentionMin), int64(api.TaskRetentionMax)).Draw(t, "retention")),
			JournalRetention: time.Duration(rapid.Int64Range(int64(api.JournalRetentionMin), int64(api.JournalRetentionMax)).Draw(t, "journal")), Voters: 5}
		c.Name = api.ConfigName
		return spec.Object{Kind: kind, Value: c}
	case "tenant":
		return spec.Object{Kind: kind, Value: &api.Tenant{Meta: anyMeta(t, false), Description: anyText.Draw(t, "description")}}
	case "pool":
		return spec.Object{Kind: kind, Value: &api.Pool{Meta: anyMeta(t, false), Driver: "dir", Path: "/srv/p", Shared: rapid.Bool().Draw(t, "shared"),
			Nodes: []string{"n1", "n2"}, ReserveBytes: anySize.Draw(t, "reserve")}}
	case "network":
		return spec.Object{Kind: kind, Value: &api.Network{Meta: anyMeta(t, true), Driver: "bridge", Bridge: "br0", Description: anyText.Draw(t, "description")}}
	case "image":
		return spec.Object{Kind: kind, Value: &api.Image{Meta: anyMeta(t, true), Format: "raw", SHA256: strings.Repeat("0a", 32), SizeBytes: anySize.Draw(t, "size")}}
	case "volume":
		return spec.Object{Kind: kind, Value: &api.Volume{Meta: anyMeta(t, true), Pool: "local", SizeBytes: anySize.Draw(t, "size"), Format: "qcow2", Node: "n1"}}
	}
	return spec.Object{Kind: "vm", Value: anyVM.Draw(t, "vm")}
})

func TestFormatParsesBackToTheSameObject(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		o := anyObject.Draw(t, "object")
		if err := o.Value.Validate(); err != nil {
			t.Skip("the generator made an invalid object: " + err.Error())
		}
		text, err := spec.Format(o.Kind, o.Value)
		if err != nil {
			t.Fatal(err)
		}
		set, err := spec.Parse([]spec.File{{Name: "f.hcl", Data: text}}, spec.Options{})
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if diff := cmp.Diff(o.Value, set.Objects[0].Value); diff != "" {
			t.Fatalf("%s\n%s", diff, text)
		}
	})
}

func TestFormatLeavesOutWhatTheKernelWrites(t *testing.T) {
	t.Parallel()
	o := &api.VM{Meta: api.Meta{ID: "id", Name: "web", Tenant: "default", Created: 1, Modified: 2, CreatedAt: time.Now(), Labels: map[string]string{"app": "x"}},
		CPUs: 1, MemoryBytes: api.GiB, Disks: []api.Disk{{Name: "root", Image: "tiny", SizeBytes: api.GiB}}}
	got, err := spec.Format("vm", o)
	want := `vm "web" {
  tenant = "default"
  labels = { app = "x" }
  cpus   = 1
  memory = "1GiB"

  disk "root" {
    image = "tiny"
    size  = "1GiB"
  }
}
`
	if err != nil || string(got) != want {
		t.Errorf("got %s, %v", got, err)
	}
	if _, err := spec.Format("node", &api.Node{}); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("a node as HCL: %v", err)
	}
}

// FuzzParse: whatever the bytes, Parse ends with an error or with objects that
// are valid, do not differ from themselves and survive being written out.
func FuzzParse(f *testing.F) {
	for _, path := range []string{"../../docs/examples/first-vm.hcl", "../../docs/examples/shop.hcl", "../../docs/hcl.md"} {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		for _, part := range strings.Split(string(text), "```") {
			f.Add([]byte(strings.TrimPrefix(part, "hcl\n")))
		}
	}
	for _, seed := range []string{"", "{", "vm", "locals { a = [for k, v in {} : k => v...] }", "tenant \"a\" { for_each = { a = null } }", "set = null", "variable \"a\" { type = object({a = optional(string)}) }",
		"locals { a = 1 / 0 }", "locals { a = [][0] }", "locals { a = \"%{ for x in [1] }${x}%{ endfor }\" }", "locals { a = {}.*.b[*] }", "locals { a = 1e999 % 0 }"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		set, err := spec.Parse([]spec.File{{Name: "f.hcl", Data: text}}, spec.Options{Set: "fuzz"})
		if err != nil {
			if c := api.CodeOf(err); c != api.CodeInvalid && c != api.CodeLimit {
				t.Fatalf("code %s: %v", c, err)
			}
			return
		}
		for _, o := range set.Objects {
			if err := o.Value.Validate(); err != nil {
				t.Fatalf("%s %s: %v", o.Kind, o.Key, err)
			}
			for _, d := range spec.Diff([]spec.Object{o}, func(string, string) api.Object { return o.Value }) {
				if d.Action != spec.None {
					t.Fatalf("differs from itself: %+v", d)
				}
			}
			out, err := spec.Format(o.Kind, o.Value)
			if err != nil {
				t.Fatal(err)
			}
			again, err := spec.Parse([]spec.File{{Name: "g.hcl", Data: out}}, spec.Options{Set: set.Name})
			if err != nil || cmp.Diff(o.Value, again.Objects[0].Value) != "" {
				t.Fatalf("%v\n%s\n%s", err, out, cmp.Diff(o.Value, again.Objects[0].Value))
			}
		}
	})
}
