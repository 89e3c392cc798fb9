package plugins_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/debvisor/debvisor/plugins"
)

// paper is disks on paper. It dies (every further step fails) or fails once
// after so many steps.
type paper struct {
	now    map[string]string            // disk to its content
	kept   map[string]map[string]string // disk to its snapshots
	left   int
	once   bool // only one step fails
	failed bool
}

var errBroken = errors.New("broken")

func newPaper(disks []plugins.DiskSpec) *paper {
	p := &paper{now: map[string]string{}, kept: map[string]map[string]string{}, left: -1}
	for _, d := range disks {
		p.now[d.Name], p.kept[d.Name] = "old "+d.Name, map[string]string{"s": "snapshot " + d.Name}
	}
	return p
}

func (p *paper) step() error {
	if p.failed && !p.once {
		return errBroken
	}
	if p.left--; p.left == 0 {
		p.failed = true
		return errBroken
	}
	return nil
}

func (p *paper) SnapshotNames(_ context.Context, d plugins.DiskSpec) ([]string, error) {
	if p.failed && !p.once {
		return nil, errBroken
	}
	return slices.Sorted(maps.Keys(p.kept[d.Name])), nil
}

func (p *paper) TakeDisk(_ context.Context, d plugins.DiskSpec, name string) error {
	if err := p.step(); err != nil {
		return err
	}
	if _, taken := p.kept[d.Name][name]; taken {
		return errors.New("the name is taken")
	}
	p.kept[d.Name][name] = p.now[d.Name]
	return nil
}

func (p *paper) ApplyDisk(_ context.Context, d plugins.DiskSpec, name string) error {
	if err := p.step(); err != nil {
		return err
	}
	content, ok := p.kept[d.Name][name]
	if !ok {
		return errors.New("there is no such snapshot")
	}
	p.now[d.Name] = content
	return nil
}

func (p *paper) DropDisk(_ context.Context, d plugins.DiskSpec, name string) error {
	if err := p.step(); err != nil {
		return err
	}
	delete(p.kept[d.Name], name)
	return nil
}

// whole is "old", "snapshot" or "mixed"; clean reports whether nothing is left
// of a revert.
func (p *paper) whole(disks []plugins.DiskSpec) (state string, clean bool) {
	clean = true
	for _, d := range disks {
		s := "mixed"
		for _, w := range []string{"old", "snapshot"} {
			if p.now[d.Name] == w+" "+d.Name {
				s = w
			}
		}
		if state != "" && state != s {
			s = "mixed"
		}
		state = s
		clean = clean && len(p.kept[d.Name]) == 1
	}
	return state, clean
}

func (p *paper) revive() { p.left, p.failed = -1, false }

func paperDisks(n int) []plugins.DiskSpec {
	var out []plugins.DiskSpec
	for i := range n {
		out = append(out, plugins.DiskSpec{Name: fmt.Sprintf("d%d", i)})
	}
	return out
}

func TestRevertSurvivesDeathAfterEachStep(t *testing.T) {
	t.Parallel()
	for n := 1; n <= 4; n++ {
		disks := paperDisks(n)
		for death := 1; death <= 3*n+1; death++ {
			p := newPaper(disks)
			p.left = death
			err := plugins.RevertDisks(t.Context(), p, disks, "s")
			if (err == nil) != (death == 3*n+1) {
				t.Fatalf("%d disks, death at step %d: %v", n, death, err)
			}
			p.revive()
			if err := plugins.RevertDisks(t.Context(), p, disks, "s"); err != nil {
				t.Fatal(err)
			}
			if state, clean := p.whole(disks); state != "snapshot" || !clean {
				t.Errorf("%d disks, death at step %d, repeated: %s, clean %v", n, death, state, clean)
			}
		}
	}
}

func TestSettledRevertIsAllOrNothing(t *testing.T) {
	t.Parallel()
	for n := 1; n <= 4; n++ {
		disks := paperDisks(n)
		for death := 1; death <= 3*n; death++ {
			for again := range 3 * n { // the settling dies as well
				p := newPaper(disks)
				p.left = death
				_ = plugins.RevertDisks(t.Context(), p, disks, "s")
				p.revive()
				p.left = again
				_ = plugins.SettleRevert(t.Context(), p, disks)
				p.revive()
				if err := plugins.SettleRevert(t.Context(), p, disks); err != nil {
					t.Fatal(err)
				}
				if state, clean := p.whole(disks); state == "mixed" || !clean {
					t.Errorf("%d disks, death at step %d and %d: %s, clean %v", n, death, again, state, clean)
				}
			}
		}
	}
}

func TestFailedRevertChangesNothing(t *testing.T) {
	t.Parallel()
	disks := paperDisks(3)
	for fail := 1; fail <= 6; fail++ {
		p := newPaper(disks)
		p.left, p.once = fail, true
		if err := plugins.RevertDisks(t.Context(), p, disks, "s"); !errors.Is(err, errBroken) {
			t.Fatalf("step %d: %v", fail, err)
		}
		if state, clean := p.whole(disks); state != "old" || !clean {
			t.Errorf("step %d: %s, clean %v", fail, state, clean)
		}
	}
}

func TestSnapshotOfAllDisksOrNone(t *testing.T) {
	t.Parallel()
	disks := paperDisks(3)
	for fail := 1; fail <= 3; fail++ {
		for _, once := range []bool{true, false} {
			p := newPaper(disks)
			p.left, p.once = fail, once
			if err := plugins.SnapshotDisks(t.Context(), p, disks, "n"); !errors.Is(err, errBroken) {
				t.Fatalf("step %d: %v", fail, err)
			}
			if _, clean := p.whole(disks); once && !clean {
				t.Errorf("step %d: a snapshot of some disks is left", fail)
			}
			p.revive()
			p.now["d0"] = "written meanwhile"
			if err := plugins.SnapshotDisks(t.Context(), p, disks, "n"); err != nil {
				t.Fatal(err)
			}
			if got := p.kept["d0"]["n"]; got != "written meanwhile" {
				t.Errorf("step %d: disk 0 was kept as %q, the others later", fail, got)
			}
		}
	}
}
