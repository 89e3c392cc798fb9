package main

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/gohcl"
	"github.com/hashicorp/hcl/v2/hclparse"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins/outbound"
)

// The hypervisors that an agent can drive.
const (
	hypervisorAuto    = "auto" // libvirt where it answers, else sim
	hypervisorLibvirt = "libvirt"
	hypervisorSim     = "sim"
)

const (
	configSizeMax = 1 << 20 // bytes of a configuration file
	shareMax      = 64      // nodes on one machine
)

// nodeConfig is what the agent of one node is told: by its configuration file,
// and by flags, which win. Who the node is stands in its data directory.
type nodeConfig struct {
	DataDir       string      `hcl:"data_dir,optional"`
	Listen        string      `hcl:"listen,optional"`    // host:port; TCP for everything, UDP for gossip; empty: as it was made
	Advertise     string      `hcl:"advertise,optional"` // host:port where others reach this node; empty: as it was made
	Hypervisor    string      `hcl:"hypervisor,optional"`
	LibvirtSocket string      `hcl:"libvirt_socket,optional"`
	LogLevel      string      `hcl:"log_level,optional"`
	LogFormat     string      `hcl:"log_format,optional"`     // text or json
	LogStore      string      `hcl:"log_store,optional"`      // wal or boltdb; empty: what the data directory has
	Witness       bool        `hcl:"witness,optional"`        // votes, runs no guests
	Share         int         `hcl:"share,optional"`          // so many nodes share this machine: each offers its part
	OutboundAllow []string    `hcl:"outbound_allow,optional"` // private networks where images may be fetched from, as 10.1.0.0/16
	OutboundHTTP  bool        `hcl:"outbound_http,optional"`  // http:// as well as https://
	OutboundCA    string      `hcl:"outbound_ca,optional"`    // file of further certificates to trust there, PEM
	Sim           *simMachine `hcl:"sim,block"`
}

// simMachine is the machine that the simulated hypervisor pretends to be.
type simMachine struct {
	CPUs     int    `hcl:"cpus,optional"`
	Memory   string `hcl:"memory,optional"`
	BootTime string `hcl:"boot_time,optional"` // as "2s"
}

func defaultNodeConfig() nodeConfig {
	return nodeConfig{
		DataDir: dataDirDefault, Hypervisor: hypervisorAuto,
		LogLevel: "info", LogFormat: "text",
	}
}

// loadNodeConfig reads a configuration file over the defaults. Every problem
// comes with its file, line and column, and the nearest known word.
func loadNodeConfig(name string) (nodeConfig, error) {
	c := defaultNodeConfig()
	raw, err := os.ReadFile(name)
	if err != nil {
		return c, fmt.Errorf("read configuration: %w", err)
	}
	if len(raw) > configSizeMax {
		return c, fmt.Errorf("read configuration: %s has %d bytes; at most %d are read", name, len(raw), configSizeMax)
	}
	file, diagnostics := hclparse.NewParser().ParseHCL(raw, name)
	if !diagnostics.HasErrors() {
		diagnostics = gohcl.DecodeBody(file.Body, nil, &c)
	}
	if diagnostics.HasErrors() {
		return c, configProblem(diagnostics)
	}
	if err := c.validate(); err != nil {
		return c, fmt.Errorf("%s: %w", name, err)
	}
	return c, nil
}

func configProblem(diagnostics hcl.Diagnostics) error {
	var problems []error
	for _, d := range diagnostics {
		where := ""
		if d.Subject != nil {
			where = fmt.Sprintf("%s:%d:%d: ", d.Subject.Filename, d.Subject.Start.Line, d.Subject.Start.Column)
		}
		detail := strings.TrimSuffix(d.Detail, ".")
		problems = append(problems, fmt.Errorf("%s%s: %s", where, lowerFirst(d.Summary), detail))
	}
	return errors.Join(problems...)
}

func lowerFirst(s string) string {
	if s == "" {
		return s
	}
	return strings.ToLower(s[:1]) + s[1:]
}

// validate checks what the file and the flags say together.
func (c *nodeConfig) validate() error {
	if !filepath.IsAbs(c.DataDir) {
		return api.Invalid("data_dir", "is %q", c.DataDir).Allow("an absolute directory")
	}
	for field, address := range map[string]string{"listen": c.Listen, "advertise": c.Advertise} {
		if _, _, err := net.SplitHostPort(address); err != nil && address != "" {
			return api.Invalid(field, "is %q", address).Allow("host:port, as 10.0.0.1:7443")
		}
	}
	for _, f := range []struct {
		field, value string
		allowed      []string
	}{
		{"hypervisor", c.Hypervisor, []string{hypervisorAuto, hypervisorLibvirt, hypervisorSim}},
		{"log_level", c.LogLevel, []string{"trace", "debug", "info", "warn", "error"}},
		{"log_format", c.LogFormat, []string{"text", "json"}},
		{"log_store", c.LogStore, []string{"", "wal", "boltdb"}},
	} {
		if !slices.Contains(f.allowed, f.value) {
			return api.Invalid(f.field, "is %q%s", f.value, didYouMean(f.value, f.allowed)).Allow("%s", strings.Join(f.allowed, ", "))
		}
	}
	if c.Share < 0 || c.Share > shareMax {
		return api.Invalid("share", "is %d", c.Share).Allow("0 (the machine is this node's alone) to %d", shareMax)
	}
	if _, err := outbound.ParseAllow(c.OutboundAllow); err != nil {
		return err
	}
	_, err := c.machine()
	return err
}

// simulated is the machine of the simulator, with 0 for its own defaults.
type simulated struct {
	cpus        int
	memoryBytes int64
	bootTime    time.Duration
}

func (c *nodeConfig) machine() (simulated, error) {
	if c.Sim == nil {
		return simulated{}, nil
	}
	memory, err := size("sim.memory", c.Sim.Memory)
	if err != nil {
		return simulated{}, err
	}
	boot, err := time.ParseDuration(cmp.Or(c.Sim.BootTime, "0s"))
	if err != nil || boot < 0 {
		return simulated{}, api.Invalid("sim.boot_time", "is %q", c.Sim.BootTime).Allow(`a duration, as "2s"`)
	}
	return simulated{cpus: c.Sim.CPUs, memoryBytes: memory, bootTime: boot}, nil
}

func size(field, s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := api.ParseSize(s)
	if err != nil {
		return 0, api.AsError(err).At(field)
	}
	return n, nil
}

// logger writes to errOut what the configuration asks for.
func (c *nodeConfig) logger(a *app) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{
		Output: a.errOut, Level: hclog.LevelFromString(c.LogLevel), JSONFormat: c.LogFormat == "json",
		TimeFn: func() time.Time { return a.now().UTC() },
	})
}
