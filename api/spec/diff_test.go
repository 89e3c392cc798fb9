package spec_test

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/spec"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

const webText = `
vm "web" {
  labels = { app = "web" }
  cpus = 1
  memory = "128MiB"
  disk "root" {
    image = "tiny"
    size = "1GiB"
  }
  nic { network = "lan" }
}`

// stored is the VM of webText as the kernel keeps it.
func stored(t testing.TB, change ...func(*api.VM)) *api.VM {
	t.Helper()
	v := mustParse(t, webText, spec.Options{Set: "shop"}).Objects[0].Value.(*api.VM)
	v.ID, v.Created, v.Modified, v.CreatedAt, v.ModifiedAt = "id", 5, 9, time.Unix(1, 0), time.Unix(2, 0)
	v.Disks[0].Volume, v.NICs[0].MAC = "web-root", "52:54:00:00:00:01"
	for _, f := range change {
		f(v)
	}
	return v
}

func against(objects ...api.Object) func(kind, key string) api.Object {
	return func(kind, key string) api.Object {
		for _, o := range objects {
			have := o.Head()
			if k, _ := api.LookupKind(kind); k.Key(have.Tenant, have.Name) == key {
				return o
			}
		}
		return nil
	}
}

func TestWhatTheKernelWritesIsNoDifference(t *testing.T) {
	t.Parallel()
	set := mustParse(t, webText, spec.Options{Set: "shop"})
	have := stored(t, func(v *api.VM) { v.Power, v.Disks[0].Bus, v.Disks[0].Pool, v.HA = "on", "virtio", "local", "none" })
	d := spec.Diff(set.Objects, against(have))
	if len(d) != 1 || d[0].Action != spec.None || len(d[0].Fields) != 0 {
		t.Fatalf("got %+v", d)
	}
	after := d[0].After.(*api.VM)
	if after.ID != "id" || after.Modified != 9 || after.Disks[0].Volume != "web-root" || after.NICs[0].MAC != "52:54:00:00:00:01" {
		t.Errorf("merged %+v", after)
	}
	if fresh := set.Objects[0].Value.(*api.VM); fresh.ID != "" || fresh.Disks[0].Volume != "" || fresh.NICs[0].MAC != "" {
		t.Error("Merge wrote into what the file wants")
	}
}

func TestChangesAreListedByField(t *testing.T) {
	t.Parallel()
	text := strings.NewReplacer("cpus = 1", "cpus = 2", `"128MiB"`, `"1GiB"`, `app = "web"`, `app = "db", tier = "back"`).Replace(webText)
	have := stored(t, func(v *api.VM) { v.Description = "old" })
	d := spec.Diff(mustParse(t, text, spec.Options{Set: "shop"}).Objects, against(have))[0]
	var got []string
	for _, f := range d.Fields {
		got = append(got, f.Field+" "+string(f.Before)+" -> "+string(f.After))
	}
	want := []string{"cpus 1 -> 2", `description "old" -> `, `labels.app "web" -> "db"`, `labels.tier  -> "back"`, "memory_bytes 134217728 -> 1073741824"}
	if diff := cmp.Diff(want, got); d.Action != spec.Update || diff != "" {
		t.Errorf("%s: %s", d.Action, diff)
	}
}

func TestADiskThatIsDescribedAnewIsForTheKernelToJudge(t *testing.T) {
	t.Parallel()
	d := spec.Diff(mustParse(t, strings.Replace(webText, `"1GiB"`, `"2GiB"`, 1)).Objects, against(stored(t)))[0]
	if v := d.After.(*api.VM); v.Disks[0].Volume != "" || d.Action != spec.Update {
		t.Errorf("%s with volume %q: the change would be ignored", d.Action, v.Disks[0].Volume)
	}
}

func TestMergeKeepsWhatAFileCannotSay(t *testing.T) {
	t.Parallel()
	config := &api.Config{Meta: api.Meta{ID: "c", Name: "cluster", Modified: 3}, Region: "r", ClusterID: "id", CPUOvercommit: 4}
	d := spec.Diff(mustParse(t, `config "cluster" {}`).Objects, against(config))[0]
	if c := d.After.(*api.Config); d.Action != spec.None || c.Region != "r" || c.ClusterID != "id" || c.Modified != 3 {
		t.Errorf("%s %+v", d.Action, d.After)
	}
	volume := &api.Volume{Meta: api.Meta{Name: "v", Tenant: "default"}, Pool: "local", SizeBytes: api.GiB, OwnerVM: "x"}
	d = spec.Diff(mustParse(t, `volume "v" {
  pool = "local"
  size = "1GiB"
  format = "qcow2"
}`).Objects, against(volume))[0]
	if v := d.After.(*api.Volume); d.Action != spec.None || v.OwnerVM != "x" {
		t.Errorf("%s %+v", d.Action, d.After)
	}
}

func TestPruneTakesWhatLeftTheSetUsersFirst(t *testing.T) {
	t.Parallel()
	object := func(kind, name, set string) spec.Object {
		var o api.Object
		m := api.Meta{Name: name, Labels: map[string]string{spec.ManagedLabel: set}}
		key := name
		switch kind {
		case "tenant":
			o = &api.Tenant{Meta: m}
		case "config":
			o = &api.Config{Meta: m}
		case "volume":
			m.Tenant, key = "default", "default/"+name
			o = &api.Volume{Meta: m}
		case "vm":
			m.Tenant, key = "default", "default/"+name
			o = &api.VM{Meta: m}
		}
		return spec.Object{Kind: kind, Key: key, Value: o}
	}
	existing := []spec.Object{object("config", "cluster", "shop"), object("tenant", "t", "shop"), object("volume", "v", "shop"), object("vm", "b", "shop"),
		object("vm", "a", "shop"), object("vm", "web", "shop"), object("vm", "c", "other"), object("vm", "d", "")}
	desired := mustParse(t, webText, spec.Options{Set: "shop"}).Objects
	var got []string
	for _, d := range spec.Prune("shop", desired, existing) {
		got = append(got, d.Action+" "+d.Kind+"/"+d.Key)
	}
	want := []string{"delete vm/default/a", "delete vm/default/b", "delete volume/default/v", "delete tenant/t"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if d := spec.Prune("", nil, existing); len(d) != 0 {
		t.Errorf("a set without a name prunes %d objects", len(d))
	}
	gone := spec.Destroy(mustParse(t, webText+"\ntenant \"t\" {}\ntenant \"absent\" {}\nconfig \"cluster\" {}").Objects,
		against(stored(t), existing[0].Value, existing[1].Value))
	if len(gone) != 2 || gone[0].Kind != "vm" || gone[1].Key != "t" {
		t.Errorf("destroy: %+v", gone)
	}
}

func TestRenderedDifferencesArePlainAndFit(t *testing.T) {
	t.Parallel()
	set := mustParse(t, strings.Replace(webText, `"128MiB"`, `"1GiB"`, 1)+`
tenant "evil" { labels = { a = "x", long = "`+strings.Repeat("y", 200)+`" } }
tenant "same" {}`)
	have := stored(t, func(v *api.VM) {
		v.Labels = map[string]string{"app": "web"}
		v.Description = "red \x1b[31m\u202e"
		v.NICs = nil
	})
	diffs := spec.Diff(set.Objects, against(have, &api.Tenant{Meta: api.Meta{Name: "same"}}))
	diffs = append(diffs, spec.Difference{Action: spec.Delete, Kind: "vm", Key: "default/old\x07"})
	got := spec.RenderDiff(diffs, false)
	want := `+ tenant evil
    labels.a = "x"
    labels.long = "` + strings.Repeat("y", 60) + `…

~ vm default/web
    - description = "red \u001b[31m\u202e"
    ~ memory = 128MiB -> 1GiB
    + nic[0].network = "lan"

- vm default/old\a

1 to create, 1 to update, 1 to delete, 1 unchanged.
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	colored := spec.RenderDiff(diffs, true)
	for _, want := range []string{"\x1b[32m+ tenant evil\x1b[0m\n", "\x1b[33m~ vm default/web\x1b[0m\n", "\x1b[31m- vm"} {
		if !strings.Contains(colored, want) {
			t.Errorf("no %q in %q", want, colored)
		}
	}
}

func TestPasswordHashesAreNotShown(t *testing.T) {
	t.Parallel()
	set := mustParse(t, strings.Replace(webText, "nic {", "cloud_init {\n user \"u\" {\n password_hash = \"$6$secret\"\n }\n}\nnic {", 1))
	if got := spec.RenderDiff(spec.Diff(set.Objects, against()), false); strings.Contains(got, "$6$") || !strings.Contains(got, "password_hash = (not shown)") {
		t.Error(got)
	}
}

func TestMergedObjectsDoNotDifferAndLinesStayNarrow(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		a, b := anyVM.Draw(t, "a"), anyVM.Draw(t, "b")
		b.Name, b.Tenant = a.Name, a.Tenant
		wanted := []spec.Object{{Kind: "vm", Key: a.Tenant + "/" + a.Name, Value: a}}
		d := spec.Diff(wanted, func(string, string) api.Object { return b })
		after := d[0].After
		if again := spec.Diff(wanted, func(string, string) api.Object { return after }); again[0].Action != spec.None {
			t.Fatalf("a second apply would change %+v", again[0].Fields)
		}
		for _, l := range strings.Split(spec.RenderDiff(d, false), "\n") {
			if n := utf8.RuneCountInString(l); n > spec.RenderWidth {
				t.Fatalf("%d characters: %s", n, l)
			}
		}
	})
}
