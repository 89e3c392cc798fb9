//go:build linux

package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func writeFile(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "agent.hcl")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestMistakesInTheConfigurationAreNamed(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, text, want string }{
		{"misspelt key", "data_dir = \"/x\"\nlisen = \"0.0.0.0:1\"\n", `agent.hcl:2:1: unsupported argument: An argument named "lisen" is not expected here. Did you mean "listen"?`},
		{"unknown key", "colour = 1\n", `agent.hcl:1:1: unsupported argument`},
		{"unknown block", "simm {}\n", `Did you mean "sim"?`},
		{"key inside a block", "sim {\n  boottime = \"1s\"\n}\n", `agent.hcl:2:3: unsupported argument: An argument named "boottime" is not expected here. Did you mean "boot_time"?`},
		{"twice", "listen = \"a:1\"\nlisten = \"b:1\"\n", "agent.hcl:2:1: attribute redefined"},
		{"wrong type", "witness = \"perhaps\"\n", "agent.hcl:1:12: unsuitable value type: Unsuitable value: a bool is required"},
		{"syntax", "data_dir = \n", "agent.hcl:1:12"},
		{"hypervisor", "hypervisor = \"libvrt\"\n", `hypervisor: is "libvrt"; did you mean "libvirt"? (allowed: auto, libvirt, sim)`},
		{"log level", "log_level = \"loud\"\n", "allowed: trace, debug, info, warn, error"},
		{"relative directory", "data_dir = \"here\"\n", `data_dir: is "here" (allowed: an absolute directory)`},
		{"address", "listen = \"7443\"\n", "host:port"},
		{"size", "sim {\n  memory = \"64 elephants\"\n}\n", `sim.memory: "64 elephants" is not a size`},
		{"duration", "sim {\n  boot_time = \"-2s\"\n}\n", `sim.boot_time: is "-2s"`},
		{"share", "share = 100\n", "share: is 100"},
		{"too long", strings.Repeat("# x\n", configSizeMax/4+1), "at most"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := runIn(t, nil, "agent", "--config", writeFile(t, tt.text))
			if got.status != statusUsage || !strings.Contains(got.err, tt.want) {
				t.Errorf("status %d, want %d; error %q, want %q in it", got.status, statusUsage, got.err, tt.want)
			}
		})
	}
}

func TestFlagsWinOverTheConfiguration(t *testing.T) {
	t.Parallel()
	file := writeFile(t, "data_dir = \"/from/file\"\nlisten = \"127.0.0.1:1\"\nlog_level = \"debug\"\nsim {\n  cpus = 3\n  memory = \"2GiB\"\n  boot_time = \"2s\"\n}\n")
	flags := defaultNodeConfig()
	cmd := agentCommand(newApp(strings.NewReader(""), io.Discard, io.Discard, func(string) string { return "" }))
	if err := cmd.ParseFlags([]string{"--listen", "127.0.0.1:2"}); err != nil {
		t.Fatal(err)
	}
	flags.Listen = "127.0.0.1:2"
	c, err := agentConfig(cmd, file, &flags)
	if err != nil {
		t.Fatal(err)
	}
	if c.DataDir != "/from/file" || c.Listen != "127.0.0.1:2" || c.LogLevel != "debug" || c.Hypervisor != hypervisorAuto {
		t.Errorf("got %+v", c)
	}
	if m, err := c.machine(); err != nil || m.cpus != 3 || m.memoryBytes != 2<<30 || m.bootTime.Seconds() != 2 {
		t.Errorf("simulated machine %+v, %v", m, err)
	}
}

// TestDevWritesAConfigurationThatTheAgentReads includes a directory whose name
// means something to HCL.
func TestDevWritesAConfigurationThatTheAgentReads(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), `a "quoted" ${name} %{x}`)
	a := newApp(strings.NewReader(""), io.Discard, io.Discard, func(string) string { return "" })
	d, err := openDev(a, devOptions{dir: dir, nodes: 2, hypervisor: hypervisorSim, logLevel: "info"})
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	for i, n := range d.nodes {
		c, err := loadNodeConfig(n.configFile())
		if err != nil {
			t.Fatal(err)
		}
		if c.DataDir != n.dataDir() || c.Listen != n.address || c.Hypervisor != hypervisorSim {
			t.Errorf("node %d: %+v", i+1, c)
		}
	}
	if _, err := openDev(a, devOptions{dir: dir, nodes: 2, hypervisor: hypervisorSim, logLevel: "info"}); err == nil || !strings.Contains(err.Error(), "another debvisor dev runs in") {
		t.Errorf("a second dev on the same directory: %v", err)
	}
}

func TestDevKeepsItsAddressesAndHypervisor(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a := newApp(strings.NewReader(""), io.Discard, io.Discard, func(string) string { return "" })
	open := func(o devOptions) (*dev, error) {
		o.dir, o.logLevel = dir, "info"
		d, err := openDev(a, o)
		if err == nil {
			d.close()
		}
		return d, err
	}
	first, err := open(devOptions{nodes: 3, hypervisor: hypervisorSim})
	if err != nil {
		t.Fatal(err)
	}
	again, err := open(devOptions{nodes: 1, hypervisor: hypervisorAuto})
	if err != nil {
		t.Fatal(err)
	}
	if len(again.nodes) != 3 || again.nodes[2].address != first.nodes[2].address || again.state.Hypervisor != hypervisorSim {
		t.Errorf("the second run has %d nodes at %v on %s, want those of the first", len(again.nodes), again.addresses(), again.state.Hypervisor)
	}
	if _, err := open(devOptions{nodes: 3, hypervisor: hypervisorLibvirt}); err == nil || !strings.Contains(err.Error(), "runs on sim") {
		t.Errorf("another hypervisor on the same directory: %v", err)
	}
	if _, err := open(devOptions{nodes: 3, hypervisor: "xen"}); err == nil {
		t.Error("an unknown hypervisor is accepted")
	}
}

// TestAgentLivesWhereItsNodeWasMade covers what the agent is not told.
func TestAgentLivesWhereItsNodeWasMade(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := placeFlags{dataDir: dir, listen: "0.0.0.0:7443", advertise: "10.0.0.1:7443", witness: true}
	if err := p.keep(); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		given, want nodeConfig
	}{
		{nodeConfig{}, nodeConfig{Listen: "0.0.0.0:7443", Advertise: "10.0.0.1:7443"}},
		{nodeConfig{Listen: "0.0.0.0:8443"}, nodeConfig{Listen: "0.0.0.0:8443", Advertise: "10.0.0.1:8443"}},
		{nodeConfig{Listen: "10.0.0.2:7443"}, nodeConfig{Listen: "10.0.0.2:7443", Advertise: "10.0.0.2:7443"}},
		{nodeConfig{Advertise: "node1:443"}, nodeConfig{Listen: "0.0.0.0:7443", Advertise: "node1:443"}},
	}
	for _, tt := range tests {
		got := tt.given
		got.DataDir = dir
		if err := got.settlePlace(); err != nil || got.Listen != tt.want.Listen || got.Advertise != tt.want.Advertise || !got.Witness {
			t.Errorf("given %q, %q: listens on %q as %q, witness %v, %v; want %q as %q", tt.given.Listen, tt.given.Advertise,
				got.Listen, got.Advertise, got.Witness, err, tt.want.Listen, tt.want.Advertise)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, filePlace), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := (&nodeConfig{DataDir: dir}).settlePlace(); err == nil || !strings.Contains(err.Error(), "is damaged") {
		t.Errorf("a damaged file: %v", err)
	}
}

func TestShellQuoteMakesOneWord(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"/a/b.pem": "/a/b.pem", "": "''", "a b": "'a b'", "it's": `'it'\''s'`, "$(x)": "'$(x)'"} {
		if got := shellQuote(in); got != want {
			t.Errorf("shellQuote(%q) = %s, want %s", in, got, want)
		}
	}
}

// TestExampleConfigurationIsRead also reads the lines that are commented out.
func TestExampleConfigurationIsRead(t *testing.T) {
	t.Parallel()
	const name = "../../docs/deployment/agent.hcl"
	if _, err := loadNodeConfig(name); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for line := range strings.Lines(string(raw)) {
		if text := strings.TrimPrefix(line, "# "); strings.ContainsAny(text, "={}") && !strings.Contains(text, ":\n") {
			line = text
		}
		all = append(all, line)
	}
	c, err := loadNodeConfig(writeFile(t, strings.Join(all, "")))
	if err != nil {
		t.Fatal(err)
	}
	if !c.Witness || c.Share != 3 || c.Sim == nil || c.Advertise != "10.0.0.1:7443" {
		t.Errorf("read %+v", c)
	}
}
