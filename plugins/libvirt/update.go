package libvirt

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/digitalocean/go-libvirt"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

var _ plugins.Updater = (*Hypervisor)(nil)

// How long an update waits for a guest to change its memory before it lets
// the guest go on by itself.
const (
	balloonWait  = 2 * time.Second
	balloonEvery = 50 * time.Millisecond
)

// Update implements plugins.Updater. It compares what libvirt shows of the
// guest with what a new start would define, device by device, so being killed
// anywhere and called again leads to the same guest. The mark is written last.
func (h *Hypervisor) Update(ctx context.Context, spec plugins.DomainSpec) error {
	if err := checkSpec(spec, h.config.ClusterID); err != nil {
		return err
	}
	return h.exclusive(ctx, spec.ID, func(ctx context.Context) error {
		c, err := h.connect(ctx)
		if err != nil {
			return err
		}
		f, err := h.look(ctx, c, spec.ID)
		switch {
		case err != nil:
			return err
		case f == nil:
			return api.Errorf(api.CodeNotFound, "no such domain").On(api.KindVM, spec.Name)
		case !f.executing():
			return api.Errorf(api.CodeConflict, "the domain does not execute").On(api.KindVM, spec.Name).Do("start it")
		case f.mark.Gen != spec.Gen:
			return api.Errorf(api.CodeConflict, "the domain executes with gen %d, not %d", f.mark.Gen, spec.Gen).On(api.KindVM, spec.Name)
		}
		if err := checkFiles(spec); err != nil {
			return err
		}
		spec.Name = f.xml.Name // a new name waits for the next start
		m, err := h.machine(ctx, c, spec)
		if err != nil {
			return err
		}
		m.started = f.mark.startedAt()
		u := &update{h: h, c: c, f: f, spec: spec, want: buildDomain(spec, m), changed: map[string]bool{}}
		return u.run(ctx)
	})
}

// update is one call of Update.
type update struct {
	h       *Hypervisor
	c       *conn
	f       *found // as it is; read again after devices changed
	spec    plugins.DomainSpec
	want    *domainXML
	pending []pendingEdit
	changed map[string]bool // disks that were plugged in by this call
}

func (u *update) run(ctx context.Context) error {
	for _, step := range []func(context.Context) error{u.removeDisks, u.addDisks, u.limitDisks, u.changeDiscs, u.changeNICs, u.changeCPUs, u.changeMemory} {
		if err := ctx.Err(); err != nil {
			return err
		}
		// A call that was begun is waited for: the lock must cover what it does.
		if err := step(context.WithoutCancel(ctx)); err != nil {
			return err
		}
	}
	if err := u.h.read(ctx, u.c, u.f); err != nil {
		return err
	}
	if u.f.mark == nil {
		return api.Errorf(api.CodeConflict, "the domain lost its mark meanwhile").On(api.KindVM, u.spec.Name)
	}
	text, err := u.want.encode()
	if err != nil {
		return err
	}
	mark, err := u.newMark()
	if err != nil {
		return err
	}
	err = u.c.call(context.WithoutCancel(ctx), func(l *libvirt.Libvirt) error {
		if _, err := l.DomainDefineXMLFlags(text, 0); err != nil {
			return err
		}
		return l.DomainSetMetadata(u.f.handle, int32(libvirt.DomainMetadataElement), libvirt.OptString{mark},
			libvirt.OptString{"debvisor"}, libvirt.OptString{markName().Space}, libvirt.DomainAffectLive)
	})
	if err != nil {
		return err
	}
	u.h.config.Logger.Info("guest updated", "id", u.spec.ID, "name", u.spec.Name, "revision", u.spec.SpecRevision, "pending", len(u.pending))
	return nil
}

// attempt makes one change. What libvirt or the guest refuses waits, and the
// update goes on; only a connection that broke ends it.
func (u *update) attempt(ctx context.Context, field, what string, change func(*libvirt.Libvirt) error) (done bool, err error) {
	err = u.c.call(ctx, change)
	if err == nil {
		return true, nil
	}
	if !u.c.alive() {
		return false, err
	}
	u.h.config.Logger.Warn("a change of a running guest waits", "id", u.spec.ID, "field", field, "error", err)
	u.wait(pendingEdit{Text: fmt.Sprintf("%s: %s did not work while the guest runs (%v); tried again, and made at the next start", field, what, err), Retry: true})
	return false, nil
}

func (u *update) wait(p pendingEdit) {
	if len(u.pending) < api.PendingMax {
		p.Text = api.CleanText(p.Text, api.TextLengthMax)
		u.pending = append(u.pending, p)
	}
}

func (u *update) waitStart(field, format string, args ...any) {
	u.wait(pendingEdit{Text: field + ": " + fmt.Sprintf(format, args...) + "; at the next start"})
}

// newMark is the mark of the guest as it is now.
func (u *update) newMark() (string, error) {
	live, m := u.f.xml, *u.want.Metadata.Mark
	m.Wanted = wanted{CPUs: live.essentials().CPUs, MemoryKiB: inKiB(u.spec.MemoryBytes)} // CPUs that could not come wait
	if m.Wanted.MemoryKiB > live.Memory.kib() {
		m.Wanted.MemoryKiB = live.essentials().MemoryKiB
	}
	for _, disk := range u.want.Devices.Disks {
		if at := live.byAlias(disk.alias()); at != nil && isDisk(&disk) && at.path() == disk.path() {
			m.Wanted.Disks = append(m.Wanted.Disks, wantedDisk{Dev: at.Target.Dev, Path: at.path(), Format: disk.Driver.Type})
		}
	}
	for _, nic := range u.want.Devices.Interfaces {
		if at := live.byMAC(nic.mac()); at != nil && sameNIC(at, &nic) {
			m.Wanted.NICs = append(m.Wanted.NICs, wantedNIC{MAC: nic.mac(), Bridge: nic.Source.Bridge})
		}
	}
	m.Hash, m.Pending, m.Fixed = m.Wanted.hash(), u.pending, nil
	m.Fixed = u.lasting(&m)
	return m.element()
}

// lasting is what stays of the properties that the guest was started with. It
// adds to the mark's pending edits those that are asked for otherwise now.
func (u *update) lasting(m *mark) []fixed {
	now := fixedOf(u.spec)
	var out []fixed
	for _, want := range now {
		i := slices.IndexFunc(u.f.mark.Fixed, func(f fixed) bool { return f.Field == want.Field })
		if i < 0 || u.changed[want.Field] {
			out = append(out, want)
			continue
		}
		was := u.f.mark.Fixed[i]
		out = append(out, was)
		if was == want || len(m.Pending) >= api.PendingMax {
			continue
		}
		m.Pending = append(m.Pending, pendingEdit{Text: api.CleanText(plugins.Lasting(want).Waits(plugins.Lasting(was)), api.TextLengthMax)})
	}
	return out
}

// changeCPUs adds CPUs. Taking one away waits for the next start: few guests
// let go of a CPU in time, and QEMU without KVM corrupts its memory over it.
func (u *update) changeCPUs(ctx context.Context) error {
	have, want := u.f.xml.essentials().CPUs, u.spec.CPUs
	switch {
	case want == have:
		return nil
	case want < have || want > u.f.xml.VCPU.Value:
		u.waitStart("cpus", "%d, the guest has %d of at most %d", want, have, u.f.xml.VCPU.Value)
		return nil
	}
	_, err := u.attempt(ctx, "cpus", fmt.Sprintf("adding up to %d", want), func(l *libvirt.Libvirt) error {
		return l.DomainSetVcpusFlags(u.f.handle, uint32(want), uint32(libvirt.DomainVCPULive))
	})
	return err
}

// changeMemory moves the balloon, and gives the guest a moment to follow.
func (u *update) changeMemory(ctx context.Context) error {
	have, want, most := u.f.xml.essentials().MemoryKiB, inKiB(u.spec.MemoryBytes), u.f.xml.Memory.kib()
	switch {
	case want > most:
		u.waitStart("memory_bytes", "%s, the guest has %s", api.FormatSize(want*api.KiB), api.FormatSize(have*api.KiB))
		return nil
	case want == have:
		return nil
	}
	done, err := u.attempt(ctx, "memory_bytes", api.FormatSize(want*api.KiB), func(l *libvirt.Libvirt) error {
		return l.DomainSetMemoryFlags(u.f.handle, uint64(want), uint32(libvirt.DomainMemLive))
	})
	if !done || err != nil {
		return err
	}
	for deadline := time.Now().Add(balloonWait); time.Now().Before(deadline); {
		if err := u.h.read(ctx, u.c, u.f); err != nil {
			return err
		}
		if u.f.xml.essentials().MemoryKiB == want {
			return nil
		}
		<-time.After(balloonEvery)
	}
	return nil
}
