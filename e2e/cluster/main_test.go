package cluster_test

import (
	"os"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
	"github.com/debvisor/debvisor/e2e/cluster/harness"
)

// example is the file that the README applies.
const example = "docs/examples/first-vm.hcl"

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// tenants is the access to tenants, the simplest kind.
func tenants(c *client.Client) client.Objects[api.Tenant, *api.Tenant] {
	return client.Resource[api.Tenant](c, api.KindTenant)
}

// instanceOf is the instance of a VM of the default tenant; nil when there is
// none.
func instanceOf(t *testing.T, c *client.Client, vm string) *api.Instance {
	t.Helper()
	list, err := client.Resource[api.Instance](c, api.KindInstance).All(t.Context(), client.ListOptions{ReadOptions: client.ReadOptions{Stale: true}})
	if err != nil {
		t.Logf("list instances: %v", err)
		return nil
	}
	for i := range list.Items {
		if list.Items[i].VM == api.Key(api.DefaultTenant, vm) {
			return &list.Items[i]
		}
	}
	return nil
}

// waitRunning waits until the instance of a VM runs and its start is known.
func waitRunning(t *testing.T, c *client.Client, vm string, timeout time.Duration) *api.Instance {
	t.Helper()
	var i *api.Instance
	harness.Until(t, timeout, "vm "+vm+" runs", func() (bool, string) {
		if i = instanceOf(t, c, vm); i == nil {
			return false, "it has no instance"
		}
		return i.State == api.InstanceRunning && !i.StartedAt.IsZero(), i.State + " " + i.Reason
	})
	return i
}
