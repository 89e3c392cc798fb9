package place_test

import (
	"strings"
	"testing"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/cluster/place"
)

func TestNodesThatCannotGiveTheHardwareAreRefusedWithTheReason(t *testing.T) {
	t.Parallel()
	old, new := node("n1"), node("n2")
	for n, models := range map[*api.Node][]string{old: api.CPULevels()[:2], new: append([]string{"EPYC"}, api.CPULevels()...)} {
		n.CPUModels = models
	}
	new.Hypervisor.TPM = true
	picture := func(baseline string) *place.Cluster {
		in := input(old, new)
		in.Config.CPUBaseline = baseline
		return place.New(in)
	}
	reasons := func(d api.Decision, node string) string {
		for _, c := range d.Candidates {
			if c.Node == node {
				return strings.Join(c.Reasons, "; ")
			}
		}
		return ""
	}
	for name, test := range map[string]struct {
		baseline string
		edit     func(*api.VM)
		node     string // "": both fit
		reason   string // of n1
	}{
		"nothing asked":             {"", func(*api.VM) {}, "", ""},
		"a level that both have":    {"", func(v *api.VM) { v.CPUModel = api.CPULevel2 }, "", ""},
		"whatever the host has":     {api.CPULevel4, func(v *api.VM) { v.CPUModel = api.CPUHost }, "", ""},
		"a level of the newer":      {"", func(v *api.VM) { v.CPUModel = api.CPULevel3 }, "n2", "CPU model: x86-64-v3 (the VM's) is more than its CPU has, which gives up to x86-64-v2"},
		"a model by name":           {"", func(v *api.VM) { v.CPUModel = "EPYC" }, "n2", "EPYC"},
		"a baseline above the node": {api.CPULevel4, func(*api.VM) {}, "n2", "the cluster's baseline"},
		"a TPM":                     {"", func(v *api.VM) { v.TPM = true }, "n2", "swtpm is not installed"},
	} {
		v := vm("new")
		test.edit(v)
		d := picture(test.baseline).Decide(v, noon)
		if test.node != "" && d.Node != test.node || !strings.Contains(reasons(d, "n1"), test.reason) || d.Node == "" {
			t.Errorf("%s: got %q, n1 because %q; want %q and %q", name, d.Node, reasons(d, "n1"), test.node, test.reason)
		}
	}
	large := vm("large")
	large.MemoryMax = 1 << 50
	if d := picture("").Decide(large, noon); d.Node != "" {
		t.Errorf("a VM whose memory_max fits nowhere runs on %s", d.Node)
	}
}
