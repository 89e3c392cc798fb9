package libvirt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// Pace of Stop.
const (
	stopCheckEvery = time.Second     // beside events
	stopAskEvery   = 5 * time.Second // a guest that still boots misses the first request
)

// found is a domain of ours as it was looked up.
type found struct {
	handle libvirt.Domain
	xml    *domainXML
	mark   *mark
	state  libvirt.DomainState
	reason int32
}

func (f *found) executing() bool {
	return f.state != libvirt.DomainShutoff && f.state != libvirt.DomainCrashed && f.state != libvirt.DomainNostate
}

// look finds the domain by ID. It returns nil without an error when there is
// none, and CodeConflict when there is one that is not ours.
func (h *Hypervisor) look(ctx context.Context, c *conn, id string) (*found, error) {
	var f found
	err := c.call(ctx, func(l *libvirt.Libvirt) (err error) {
		f.handle, err = l.DomainLookupByUUID(libvirt.UUID(uuid.MustParse(id)))
		return err
	})
	if api.CodeOf(err) == api.CodeNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := h.read(ctx, c, &f); err != nil {
		if api.CodeOf(err) == api.CodeNotFound {
			return nil, nil // it went away between the calls
		}
		return nil, err
	}
	if f.mark == nil {
		return nil, api.Errorf(api.CodeConflict, "the machine has a domain %s with this ID that debvisor does not manage", f.handle.Name).
			On(api.KindVM, id).Do("remove that domain, or give the VM another ID")
	}
	return &f, nil
}

// read fills in what the handle's domain is now.
func (h *Hypervisor) read(ctx context.Context, c *conn, f *found) error {
	var text string
	err := c.call(ctx, func(l *libvirt.Libvirt) error {
		state, reason, err := l.DomainGetState(f.handle, 0)
		if err != nil {
			return err
		}
		f.state, f.reason = libvirt.DomainState(state), reason
		text, err = l.DomainGetXMLDesc(f.handle, 0)
		return err
	})
	if err != nil {
		return err
	}
	if f.xml, err = decodeDomain(text); err != nil {
		return err
	}
	f.mark = f.xml.markOf(h.config.ClusterID)
	return nil
}

// Start implements plugins.Hypervisor.
func (h *Hypervisor) Start(ctx context.Context, spec plugins.DomainSpec) error {
	if err := checkSpec(spec, h.config.ClusterID); err != nil {
		return err
	}
	return h.exclusive(ctx, spec.ID, func(ctx context.Context) error {
		c, err := h.connect(ctx)
		if err != nil {
			return err
		}
		old, err := h.look(ctx, c, spec.ID)
		if err != nil {
			return err
		}
		if old != nil && old.executing() {
			if old.mark.Gen == spec.Gen {
				return nil
			}
			return api.Errorf(api.CodeConflict, "the domain executes with gen %d, not %d", old.mark.Gen, spec.Gen).
				On(api.KindVM, spec.Name).Do("stop it first")
		}
		text, err := h.prepare(ctx, c, spec)
		if err != nil {
			return err
		}
		return h.define(ctx, c, spec, old, text)
	})
}

// prepare writes the guest's files and renders its definition.
func (h *Hypervisor) prepare(ctx context.Context, c *conn, spec plugins.DomainSpec) (string, error) {
	m, err := h.machine(ctx, c, spec)
	if err != nil {
		return "", err
	}
	if err := checkFiles(spec); err != nil {
		return "", err
	}
	text, err := buildDomain(spec, m).encode()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(m.dir, 0o711); err != nil {
		return "", fmt.Errorf("make the guest's directory: %w", err)
	}
	if err := trimLog(filepath.Join(m.dir, consoleFile)); err != nil {
		return "", err
	}
	if spec.Seed == nil {
		return text, nil
	}
	seed, err := buildSeed(spec.Seed, spec.SeedID, spec.Name)
	if err != nil {
		return "", err
	}
	return text, writeFile(filepath.Join(m.dir, seedFile), seed)
}

// machine is what the guest of a spec finds here.
func (h *Hypervisor) machine(ctx context.Context, c *conn, spec plugins.DomainSpec) (machine, error) {
	accel, err := h.acceleration(ctx, c)
	if err != nil {
		return machine{}, err
	}
	m := machine{
		virtType: accel.virtType, emulator: accel.emulator, arch: accel.arch,
		dir: filepath.Join(h.config.StateDir, spec.ID), started: time.Now(),
	}
	if spec.TPM && !accel.tpm {
		return machine{}, api.Errorf(api.CodeUnavailable, "this node cannot give a guest a TPM: swtpm is missing").
			On(api.KindVM, spec.Name).Do("install it: apt install swtpm swtpm-tools; systemctl restart libvirtd")
	}
	if spec.Firmware == "uefi" {
		if m.firmware, err = findFirmware(h.config.FirmwareDir); err != nil {
			return machine{}, err
		}
	}
	return m, nil
}

// checkFiles says early and in words what QEMU would say late.
func checkFiles(spec plugins.DomainSpec) error {
	paths := []string{}
	for _, d := range spec.Disks {
		paths = append(paths, d.Source.Path)
	}
	for _, d := range spec.CDROMs {
		if d.Source.Path != "" {
			paths = append(paths, d.Source.Path)
		}
	}
	if spec.Boot != nil {
		paths = append(paths, spec.Boot.Kernel)
		if spec.Boot.Initrd != "" {
			paths = append(paths, spec.Boot.Initrd)
		}
	}
	for _, path := range paths {
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			return api.Errorf(api.CodeNotFound, "a file of the guest is missing: %s", path).On(api.KindVM, spec.Name)
		} else if err != nil {
			return fmt.Errorf("look for %s: %w", path, err)
		}
	}
	return nil
}

// writeFile replaces a file of the guest in one step. QEMU may run as another
// user; libvirt hands the file over to it at the start.
func writeFile(path string, content []byte) error {
	temp := path + ".new"
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		_ = os.Remove(temp)
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	return nil
}

// define replaces the definition and starts it. From here on the calls are
// not left alone when ctx ends: the lock must cover what they do.
func (h *Hypervisor) define(ctx context.Context, c *conn, spec plugins.DomainSpec, old *found, text string) error {
	held := context.WithoutCancel(ctx)
	var other libvirt.Domain
	err := c.call(held, func(l *libvirt.Libvirt) (err error) {
		other, err = l.DomainLookupByName(spec.Name)
		return err
	})
	if err == nil && uuid.UUID(other.UUID).String() != spec.ID {
		return api.Errorf(api.CodeConflict, "the name belongs to domain %s of this machine", uuid.UUID(other.UUID)).
			On(api.KindVM, spec.Name).Do("rename or remove that domain")
	}
	if err != nil && api.CodeOf(err) != api.CodeNotFound {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if old != nil && old.xml.Name != spec.Name {
		// libvirt changes no name by defining anew.
		err := c.call(held, func(l *libvirt.Libvirt) error {
			return l.DomainUndefineFlags(old.handle, libvirt.DomainUndefineKeepNvram|libvirt.DomainUndefineKeepTpm|libvirt.DomainUndefineManagedSave)
		})
		if err != nil {
			return err
		}
	}
	h.remember(spec.ID)
	err = c.call(held, func(l *libvirt.Libvirt) error {
		domain, err := l.DomainDefineXMLFlags(text, 0)
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return api.Errorf(api.CodeUnavailable, "the start was given up before the guest ran: %v", err)
		}
		_, err = l.DomainCreateWithFlags(domain, uint32(libvirt.DomainStartForceBoot))
		return err
	})
	if err != nil {
		if e, ok := errors.AsType[*api.Error](err); ok {
			return e.On(api.KindVM, spec.Name)
		}
		return err
	}
	h.config.Logger.Info("guest started", "id", spec.ID, "name", spec.Name, "gen", spec.Gen)
	return nil
}

// Stop implements plugins.Hypervisor.
func (h *Hypervisor) Stop(ctx context.Context, id string, grace time.Duration) error {
	if err := checkID(id); err != nil {
		return err
	}
	c, err := h.connect(ctx)
	if err != nil {
		return err
	}
	f, err := h.look(ctx, c, id)
	if err != nil || f == nil || !f.executing() {
		return ignoreForeign(err)
	}
	// A paused guest cannot answer.
	if grace > 0 && f.state != libvirt.DomainPaused {
		if err := h.ask(ctx, c, f, grace); err != nil {
			return err
		}
	}
	return h.exclusive(ctx, id, func(ctx context.Context) error {
		now, err := h.look(ctx, c, id)
		if err != nil || now == nil || !now.executing() || now.mark.Gen != f.mark.Gen {
			return ignoreForeign(err)
		}
		err = c.call(context.WithoutCancel(ctx), func(l *libvirt.Libvirt) error {
			return l.DomainDestroyFlags(now.handle, 0)
		})
		if code := api.CodeOf(err); code == api.CodeNotFound || code == api.CodeConflict {
			return nil // it ended by itself
		}
		return err
	})
}

// ignoreForeign lets a domain that is not ours count as unknown.
func ignoreForeign(err error) error {
	if api.CodeOf(err) == api.CodeConflict {
		return nil
	}
	return err
}

// ask presses the power button until the guest ends, at most for grace.
func (h *Hypervisor) ask(ctx context.Context, c *conn, f *found, grace time.Duration) error {
	waiting, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	events, err := h.Events(waiting)
	if err != nil {
		return err
	}
	check := time.NewTicker(stopCheckEvery)
	defer check.Stop()
	asked := time.Time{}
	for {
		if time.Since(asked) >= stopAskEvery {
			asked = time.Now()
			err := c.call(waiting, func(l *libvirt.Libvirt) error {
				return l.DomainShutdownFlags(f.handle, libvirt.DomainShutdownAcpiPowerBtn)
			})
			if code := api.CodeOf(err); code == api.CodeUnavailable {
				return err
			}
		}
		select {
		case <-waiting.Done():
			return ctx.Err() // nil when only grace is over
		case _, open := <-events:
			if !open {
				events = nil
			}
		case <-check.C:
		}
		now, err := h.look(waiting, c, f.xml.UUID)
		if waiting.Err() != nil {
			return ctx.Err()
		}
		if err != nil || now == nil || !now.executing() || now.mark.Gen != f.mark.Gen {
			return ignoreForeign(err)
		}
	}
}

// Remove implements plugins.Hypervisor.
func (h *Hypervisor) Remove(ctx context.Context, id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	return h.exclusive(ctx, id, func(ctx context.Context) error {
		c, err := h.connect(ctx)
		if err != nil {
			return err
		}
		f, err := h.look(ctx, c, id)
		if err != nil {
			return ignoreForeign(err)
		}
		if f != nil && f.executing() {
			return api.Errorf(api.CodeConflict, "the domain executes").On(api.KindVM, f.xml.Name).Do("stop it first")
		}
		if f != nil {
			err := c.call(context.WithoutCancel(ctx), func(l *libvirt.Libvirt) error {
				return l.DomainUndefineFlags(f.handle, libvirt.DomainUndefineManagedSave|libvirt.DomainUndefineSnapshotsMetadata|
					libvirt.DomainUndefineCheckpointsMetadata|libvirt.DomainUndefineNvram)
			})
			if err != nil && api.CodeOf(err) != api.CodeNotFound {
				return err
			}
		}
		if err := os.RemoveAll(filepath.Join(h.config.StateDir, id)); err != nil {
			return fmt.Errorf("remove the guest's files: %w", err)
		}
		h.config.Logger.Info("guest removed", "id", id)
		return nil
	})
}
