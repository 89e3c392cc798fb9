package plugins_test

import (
	"strings"
	"testing"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

func TestAListingOfForeignGuestsIsBoundedAndClean(t *testing.T) {
	t.Parallel()
	evil := api.ForeignDomain{Name: "\x1b[2J" + strings.Repeat("x", 1<<20), Disks: make([]api.ForeignDisk, 1000), NICs: make([]api.ForeignNIC, 1000)}
	evil.Disks[0].Path = "/a\nb\x1b" + strings.Repeat("y", 1<<16)
	all := make([]api.ForeignDomain, api.ForeignMax+1)
	all[0] = evil
	list := plugins.CleanForeign(all)
	if len(list.Items) != api.ForeignMax || !list.More {
		t.Fatalf("%d items, more: %v", len(list.Items), list.More)
	}
	d := list.Items[0]
	if len(d.Name) > api.TextLengthMax || strings.ContainsAny(d.Name+d.Disks[0].Path, "\x1b\n") || len(d.Disks) != api.DisksMax || len(d.NICs) != api.NICsMax || len(d.Disks[0].Path) > 1024 {
		t.Errorf("kept %d bytes of name, %d disks, %d interfaces, %q", len(d.Name), len(d.Disks), len(d.NICs), d.Disks[0].Path[:20])
	}
}
