package libvirt_test

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kdomanski/iso9660"
	"go.yaml.in/yaml/v3"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins/libvirt"
)

// files reads the seed as a guest would.
func files(t testing.TB, image []byte) map[string]string {
	t.Helper()
	disk, err := iso9660.OpenImage(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	label, err := disk.Label()
	if err != nil || strings.TrimSpace(label) != "CIDATA" {
		t.Errorf("the label is %q: %v", label, err)
	}
	root, err := disk.RootDir()
	if err != nil {
		t.Fatal(err)
	}
	children, err := root.GetChildren()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, c := range children {
		content, err := io.ReadAll(c.Reader())
		if err != nil {
			t.Fatal(err)
		}
		out[c.Name()] = string(content)
	}
	return out
}

func TestSeedCarriesEachFieldAndNoMore(t *testing.T) {
	t.Parallel()
	const hostile = "web\nusers:\n- name: root\n  ssh_authorized_keys: [evil]\n#\t: {}"
	image, err := libvirt.Seed(&api.CloudInit{
		Hostname: hostile, Packages: []string{"nginx", hostile},
		Users:    []api.CloudInitUser{{Name: "ada", SSHKeys: []string{"ssh-ed25519 AAAA\nevil: yes"}, Sudo: true, PasswordHash: "$6$x"}},
		Files:    []api.CloudInitFile{{Path: "/etc/motd", Content: "hello\n...\n---\nusers: []\n"}},
		Commands: [][]string{{"touch", "/tmp/a; rm -rf /", "$(reboot)"}},
		Network:  "version: 2\nethernets: {eth0: {dhcp4: true}}\n",
	}, "id\ninstance-id: other", "default.web")
	if err != nil {
		t.Fatal(err)
	}
	got := files(t, image)
	if len(got) != 3 {
		t.Errorf("the seed has %d files, want user-data, meta-data, network-config", len(got))
	}
	var meta map[string]string
	if err := yaml.Unmarshal([]byte(got["meta-data"]), &meta); err != nil || len(meta) != 2 ||
		meta["instance-id"] != "id\ninstance-id: other" || meta["local-hostname"] != hostile {
		t.Errorf("meta-data is %q: %v", got["meta-data"], err)
	}
	if !strings.HasPrefix(got["user-data"], "#cloud-config\n") {
		t.Errorf("user-data begins with %.20q", got["user-data"])
	}
	var user struct {
		Hostname string
		Users    []struct {
			Name   string
			Sudo   string
			Keys   []string `yaml:"ssh_authorized_keys"`
			Lock   bool     `yaml:"lock_passwd"`
			Passwd string
		}
		Packages []string
		Files    []struct{ Path, Content, Permissions string } `yaml:"write_files"`
		RunCmd   [][]string
	}
	d := yaml.NewDecoder(strings.NewReader(got["user-data"]))
	if err := d.Decode(&user); err != nil {
		t.Fatal(err)
	}
	if err := d.Decode(new(any)); err != io.EOF {
		t.Errorf("user-data has a second document: %v", err)
	}
	if user.Hostname != hostile || len(user.Users) != 1 || user.Users[0].Name != "ada" || user.Users[0].Lock || user.Users[0].Passwd != "$6$x" ||
		len(user.Users[0].Keys) != 1 || user.Users[0].Keys[0] != "ssh-ed25519 AAAA\nevil: yes" || len(user.Packages) != 2 {
		t.Errorf("user-data reads back as %+v", user)
	}
	if len(user.Files) != 1 || user.Files[0].Content != "hello\n...\n---\nusers: []\n" || user.Files[0].Permissions != "0644" {
		t.Errorf("write_files reads back as %+v", user.Files)
	}
	if len(user.RunCmd) != 1 || user.RunCmd[0][1] != "/tmp/a; rm -rf /" {
		t.Errorf("runcmd reads back as %q", user.RunCmd)
	}
}

func TestSeedNamesTheGuestAfterItsVM(t *testing.T) {
	t.Parallel()
	image, err := libvirt.Seed(&api.CloudInit{}, "id-1", "default.web")
	if err != nil {
		t.Fatal(err)
	}
	if got := files(t, image); !strings.Contains(got["meta-data"], "local-hostname: web\n") || len(got) != 2 {
		t.Errorf("the seed is %q", got)
	}
}

func TestSeedRefusesANetworkThatIsNotYAML(t *testing.T) {
	t.Parallel()
	_, err := libvirt.Seed(&api.CloudInit{Network: "\tnot: [yaml"}, "id", "default.web")
	if api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("got %v, want CodeInvalid", err)
	}
}

func TestLongConsoleLogKeepsItsEnd(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "console.log")
	if err := libvirt.TrimLog(path); err != nil {
		t.Errorf("a missing log: %v", err)
	}
	long := append(bytes.Repeat([]byte("x"), libvirt.ConsoleLogMax), "the end"...)
	if err := os.WriteFile(path, long, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := libvirt.TrimLog(path); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil || len(got) != libvirt.ConsoleLogKeep || !bytes.HasSuffix(got, []byte("the end")) {
		t.Errorf("%d bytes are left, ending with %q: %v", len(got), got[len(got)-7:], err)
	}
}

func TestVirtualizationIsReadFromTheFlags(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{
		"processor: 0\nflags\t\t: fpu vmx sse\n": true, "flags\t\t: fpu svm\n": true,
		"flags\t\t: fpu sse\nmodel name: vmx\n": false, "": false, "flags : svmx\n": false,
	} {
		if got := libvirt.HasVirtualization([]byte(text)); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}
