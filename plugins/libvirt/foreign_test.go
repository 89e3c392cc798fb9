package libvirt_test

import (
	"testing"

	"github.com/google/uuid"

	"github.com/debvisor/debvisor/plugins"
	"github.com/debvisor/debvisor/plugins/libvirt"
	"github.com/debvisor/debvisor/plugins/plugintest"
)

func TestForeignGuestsAreListed(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	plugintest.Foreign(t, plugintest.ForeignGuests{
		Open: func(t testing.TB) interface {
			plugins.Hypervisor
			plugins.Foreign
		} {
			return m.open(t).(*libvirt.Hypervisor)
		},
		Spec: m.spec,
		Make: func(t testing.TB, name string) string {
			c, id := m.client(t), uuid.NewString()
			if _, err := c.DomainDefineXML(`<domain type="qemu"><name>` + name + `</name><uuid>` + id + `</uuid><memory unit="MiB">64</memory>` +
				`<os><type arch="x86_64" machine="q35">hvm</type></os></domain>`); err != nil {
				t.Fatal(err)
			}
			if _, err := c.DomainCreateWithFlags(m.domain(t, c, id), 0); err != nil {
				t.Fatal(err)
			}
			return id
		},
	})
}
