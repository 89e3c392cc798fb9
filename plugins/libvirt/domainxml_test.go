package libvirt_test

import (
	"encoding/xml"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
	"github.com/debvisor/debvisor/plugins/libvirt"
)

func fullSpec() plugins.DomainSpec {
	spec := plugins.DomainSpec{
		ID: uuid.NewString(), Name: "default.web", ClusterID: uuid.NewString(), Gen: 5, SpecRevision: 9, CPUs: 2, MemoryBytes: 256 * api.MiB,
		Firmware: "uefi", Boot: &plugins.BootSpec{Kernel: "/p/images/k.raw", Initrd: "/p/images/i.raw", Args: "console=ttyS0"},
		Seed: &api.CloudInit{Hostname: "web"}, SeedID: "seed-1",
	}
	for i := range 30 {
		bus := []string{"virtio", "scsi", ""}[i%3]
		spec.Disks = append(spec.Disks, plugins.DiskSpec{Name: "d" + strconv.Itoa(i), Bus: bus, ReadOnly: i%2 == 0,
			Source: plugins.Source{Path: "/p/volumes/" + uuid.NewString() + ".qcow2", Format: api.FormatQCOW2}})
	}
	for _, mac := range []string{"52:54:00:00:00:01", "52:54:00:00:00:02"} {
		spec.NICs = append(spec.NICs, plugins.NICSpec{Bridge: "br0", MAC: mac})
	}
	return spec
}

// shape lists the elements and attributes of a document, without their values.
func shape(t testing.TB, text string) string {
	t.Helper()
	var out strings.Builder
	d := xml.NewDecoder(strings.NewReader(text))
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return out.String()
		}
		if err != nil {
			t.Fatalf("%v in %s", err, text)
		}
		if start, ok := token.(xml.StartElement); ok {
			out.WriteString(start.Name.Local)
			for _, a := range start.Attr {
				out.WriteString(" " + a.Name.Local)
			}
			out.WriteString("\n")
		}
	}
}

func TestDefinitionSaysWhatWasAskedFor(t *testing.T) {
	t.Parallel()
	spec := fullSpec()
	text, err := libvirt.Render(spec, "qemu")
	if err != nil {
		t.Fatal(err)
	}
	gen, revision, drift, ours := libvirt.Wanted(text, spec.ClusterID)
	if gen != 5 || revision != 9 || len(drift) != 0 || !ours {
		t.Errorf("the mark says gen %d, revision %d, drift %q, ours %v", gen, revision, drift, ours)
	}
	if _, _, _, ours := libvirt.Wanted(text, uuid.NewString()); ours {
		t.Error("another cluster takes the domain for its own")
	}
	for _, part := range []string{
		`<domain type="qemu">`, `machine="q35"`, `<loader readonly="yes" type="pflash">/fw/code</loader>`, `<on_crash>destroy</on_crash>`,
		`<on_reboot>restart</on_reboot>`, `<acpi>`, `dev="vdt"`, `<log file="/state/` + spec.ID + `/console.log" append="on">`,
		`name="org.qemu.guest_agent.0"`, `<rng model="virtio">`, `<kernel>/p/images/k.raw</kernel>`,
	} {
		if !strings.Contains(text, part) {
			t.Errorf("the definition lacks %s: %s", part, text)
		}
	}
	for _, never := range []string{"tcp", "vnc", "<graphics", "listen"} {
		if strings.Contains(text, never) {
			t.Errorf("the definition has %q", never)
		}
	}
}

func TestDriftNamesTheDifference(t *testing.T) {
	t.Parallel()
	spec := fullSpec()
	text, err := libvirt.Render(spec, "qemu")
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ old, new, want string }{
		"memory": {`unit="KiB">262144<`, `unit="KiB">524288<`, "memory_bytes: 512 MiB, wanted 256 MiB"},
		"cpus":   {`>2</vcpu>`, `>4</vcpu>`, "cpus: 4, wanted 2"},
		"bridge": {`<source bridge="br0">`, `<source bridge="br9">`, "nics: 52:54:00:00:00:01 on br0 is missing"},
		"mark":   {`cpus="2"`, `cpus="3"`, "mark: was edited"},
		"disk":   {`target dev="vda"`, `target dev="vdzz"`, "disks: vda is detached"},
	} {
		edited := strings.ReplaceAll(text, test.old, test.new)
		if edited == text {
			t.Fatalf("%s: nothing to edit", name)
		}
		_, _, drift, _ := libvirt.Wanted(edited, spec.ClusterID)
		if !strings.Contains(strings.Join(drift, "\n"), test.want) {
			t.Errorf("%s: drift %q, want %q", name, drift, test.want)
		}
	}
}

// FuzzHostileTextStaysText puts any text where a user's text can go: it is
// refused, or it changes no element and no attribute of the document.
func FuzzHostileTextStaysText(f *testing.F) {
	for _, seed := range []string{
		`"/><disk type="file"><source file="/etc/shadow"/></disk>`, `]]><x/>`, `&lt;&#0;&xxe;`, `<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd">]>`,
		"a\x00b", "line\nbreak", "\r", "\ufffe", "\u202e", "json:{}", "ok",
	} {
		f.Add(seed, seed)
	}
	plain := fullSpec()
	text, err := libvirt.Render(plain, "qemu")
	if err != nil {
		f.Fatal(err)
	}
	want := shape(f, text)
	f.Fuzz(func(t *testing.T, name, args string) {
		spec := plain
		boot := *plain.Boot
		boot.Args = "x" + args
		boot.Kernel = "/images/" + name
		spec.Boot, spec.Name = &boot, "x"+name
		spec.Disks = append([]plugins.DiskSpec{{Name: "d0", Source: plugins.Source{Path: "/volumes/" + name, Format: api.FormatQCOW2}}}, plain.Disks[1:]...)
		spec.NICs = []plugins.NICSpec{{Bridge: "b" + name, MAC: plain.NICs[0].MAC}, plain.NICs[1]}
		text, err := libvirt.Render(spec, "qemu")
		if err != nil {
			if api.CodeOf(err) != api.CodeInvalid {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		if got := shape(t, text); !sameShape(got, want) {
			t.Fatalf("the document changed its shape: %s", text)
		}
		if _, _, drift, ours := libvirt.Wanted(text, spec.ClusterID); !ours || len(drift) > 0 {
			t.Fatalf("the definition does not read back: %v %q", ours, drift)
		}
	})
}

// sameShape compares without <readonly>, which differs between the disks.
func sameShape(a, b string) bool {
	return strings.ReplaceAll(a, "readonly\n", "") == strings.ReplaceAll(b, "readonly\n", "")
}

func TestSpecsOutOfBoundsAreRefused(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(*plugins.DomainSpec){
		"10,000 disks":    func(s *plugins.DomainSpec) { s.Disks = make([]plugins.DiskSpec, 10000) },
		"10,000 NICs":     func(s *plugins.DomainSpec) { s.NICs = make([]plugins.NICSpec, 10000) },
		"memory 2^62":     func(s *plugins.DomainSpec) { s.MemoryBytes = 1 << 62 },
		"2^31 CPUs":       func(s *plugins.DomainSpec) { s.CPUs = 1 << 31 },
		"json: source":    func(s *plugins.DomainSpec) { s.Disks[0].Source.Path = `json:{"driver":"nbd"}` },
		"URL source":      func(s *plugins.DomainSpec) { s.Disks[0].Source.Path = "http://example.org/disk" },
		"no format":       func(s *plugins.DomainSpec) { s.Disks[0].Source.Format = "" },
		"unknown format":  func(s *plugins.DomainSpec) { s.Disks[0].Source.Format = "vmdk" },
		"relative kernel": func(s *plugins.DomainSpec) { s.Boot.Kernel = "vmlinuz" },
		"long arguments":  func(s *plugins.DomainSpec) { s.Boot.Args = strings.Repeat("x", api.KernelArgsMax+1) },
		"bad MAC":         func(s *plugins.DomainSpec) { s.NICs[0].MAC = `"><x/>` },
		"firmware":        func(s *plugins.DomainSpec) { s.Firmware = "coreboot" },
	} {
		spec := fullSpec()
		spoil(&spec)
		if _, err := libvirt.Render(spec, "qemu"); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%s: got %v, want CodeInvalid", name, err)
		}
	}
}

// virt-clone and a hand-made copy keep the metadata.
func TestACopyOfOurDomainIsNotOurs(t *testing.T) {
	t.Parallel()
	const id, cluster = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
	text, err := libvirt.Render(plugins.DomainSpec{ID: id, Name: "default.web", ClusterID: cluster, Gen: 7, CPUs: 1, MemoryBytes: 128 * api.MiB}, "qemu")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, ours := libvirt.Wanted(text, cluster); !ours {
		t.Fatal("the domain is not ours")
	}
	cloned := strings.Replace(text, "<uuid>"+id, "<uuid>33333333-3333-4333-8333-333333333333", 1)
	if _, _, _, ours := libvirt.Wanted(cloned, cluster); ours || cloned == text {
		t.Error("a copy under another UUID counts as ours and would be destroyed as a stray")
	}
}

func TestAGuestShowsAddressesAndNoOtherText(t *testing.T) {
	t.Parallel()
	got := libvirt.Usable("10.0.0.5", "2001:DB8:0::1", "2001:db8::2%\x1b[31mgotcha", "fe80::1", "127.0.0.1", "<b>", "")
	if want := []string{"10.0.0.5", "2001:db8::1"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
