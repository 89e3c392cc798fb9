package api_test

import (
	"testing"

	"github.com/debvisor/debvisor/api"
)

func TestBaselineIsWhatEveryNodeWithKVMCanGive(t *testing.T) {
	t.Parallel()
	node := func(acceleration string, models ...string) *api.Node {
		return &api.Node{Hypervisor: api.HypervisorInfo{Acceleration: acceleration}, CPUModels: models}
	}
	levels := api.CPULevels()
	witness := node("kvm", levels[:1]...)
	witness.Witness = true
	for name, test := range map[string]struct {
		config *api.Config
		nodes  []*api.Node
		want   string
	}{
		"no nodes":                   {nil, nil, ""},
		"emulation alone":            {nil, []*api.Node{node("tcg", levels[:2]...), node("none", levels...)}, ""},
		"one node":                   {nil, []*api.Node{node("kvm", levels[:3]...)}, api.CPULevel3},
		"the weakest counts":         {nil, []*api.Node{node("kvm", levels...), node("kvm", append([]string{"Nehalem"}, levels[:2]...)...)}, api.CPULevel2},
		"emulation does not count":   {nil, []*api.Node{node("kvm", levels...), node("tcg", levels[:2]...)}, api.CPULevel4},
		"a witness does not count":   {nil, []*api.Node{node("kvm", levels...), witness}, api.CPULevel4},
		"nor who has not said":       {nil, []*api.Node{node("kvm", levels[:3]...), node("kvm")}, api.CPULevel3},
		"one that has no level":      {nil, []*api.Node{node("kvm", levels...), node("kvm", "486")}, ""},
		"the settings say otherwise": {&api.Config{CPUBaseline: "EPYC"}, []*api.Node{node("kvm", levels...)}, "EPYC"},
	} {
		if got := api.CPUBaseline(test.config, test.nodes); got != test.want {
			t.Errorf("%s: got %q, want %q", name, got, test.want)
		}
	}
	for model, want := range map[string]string{"": "base", api.CPUHost: "", "EPYC": "EPYC"} {
		if got := (&api.VM{CPUModel: model}).GuestCPU("base"); got != want {
			t.Errorf("cpu_model %q: got %q, want %q", model, got, want)
		}
	}
}
