package libvirt_test

import (
	"strings"
	"testing"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
	"github.com/debvisor/debvisor/plugins/libvirt"
)

// A mark that is written anew, as after a disk was moved, forgets neither what
// waits for the next start nor what the guest was started with.
func TestAReplacedMarkKeepsWhatWaits(t *testing.T) {
	t.Parallel()
	spec := plugins.DomainSpec{ID: "11111111-1111-4111-8111-111111111111", Name: "default.web", ClusterID: "c", Gen: 7, SpecRevision: 9,
		CPUs: 1, MemoryBytes: 128 * api.MiB}
	text, err := libvirt.Render(spec, "qemu")
	if err != nil {
		t.Fatal(err)
	}
	mark, err := libvirt.Remarked(text, "c", "cpus: 2, the guest has 1")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"<pending>cpus: 2, the guest has 1</pending>", "<fixed field=", `gen="7"`, `revision="9"`} {
		if !strings.Contains(mark, want) {
			t.Errorf("%s is not in %s", want, mark)
		}
	}
}
