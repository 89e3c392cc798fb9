package libvirt

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// Bounds of one run of qemu-img.
const (
	imageTimeout   = 10 * time.Minute // to delete a snapshot of a large disk
	imageKillDelay = 2 * time.Second
	imageOutputMax = 4 << 20 // bytes that are kept
)

// images reaches the snapshots within the files of disks that no guest has open.
type images struct{ h *Hypervisor }

// imageOptions names a qcow2 file to qemu-img without letting it guess: a comma
// in a path is written twice.
func imageOptions(path string) string {
	return "driver=qcow2,file.driver=file,file.filename=" + strings.ReplaceAll(path, ",", ",,")
}

func (i images) run(ctx context.Context, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, imageTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-img", args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	cmd.WaitDelay = imageKillDelay
	var out, complaint shortened
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		text := api.CleanText(string(bytes.TrimSpace(complaint.Bytes())), api.TextLengthMax)
		if strings.Contains(text, "lock") {
			return nil, api.Errorf(api.CodeConflict, "a guest has the disk open: %s", text).Do("stop it first")
		}
		return nil, api.Errorf(api.CodeUnavailable, "qemu-img %s: %v: %s", args[0], err, text)
	}
	return out.Bytes(), nil
}

// shortened keeps the beginning of what a program prints.
type shortened struct{ bytes.Buffer }

func (s *shortened) Write(p []byte) (int, error) {
	if room := imageOutputMax - s.Len(); room > 0 {
		s.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// change runs "qemu-img snapshot" and makes its outcome durable.
func (i images) change(ctx context.Context, option string, disk plugins.DiskSpec, name string) error {
	if _, err := i.run(ctx, "snapshot", "-q", "--image-opts", option, name, imageOptions(disk.Source.Path)); err != nil {
		return err
	}
	f, err := os.Open(disk.Source.Path)
	if err != nil {
		return fmt.Errorf("sync disk %s: %w", disk.Name, err)
	}
	defer func() { _ = f.Close() }()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync disk %s: %w", disk.Name, err)
	}
	return nil
}

// SnapshotNames implements plugins.DiskSnapshots.
func (i images) SnapshotNames(ctx context.Context, disk plugins.DiskSpec) ([]string, error) {
	if _, err := os.Stat(disk.Source.Path); err != nil {
		return nil, api.Errorf(api.CodeNotFound, "the file of disk %s is missing", disk.Name)
	}
	raw, err := i.run(ctx, "info", "--output=json", "--image-opts", imageOptions(disk.Source.Path))
	if err != nil {
		return nil, err
	}
	var info struct {
		Snapshots []imageSnapshot `json:"snapshots"`
	}
	if err := json.Unmarshal(raw, &info); err != nil {
		return nil, fmt.Errorf("read what qemu-img says of disk %s: %w", disk.Name, err)
	}
	var names []string
	for _, s := range info.Snapshots {
		names = append(names, s.Name)
	}
	return names, nil
}

// TakeDisk implements plugins.DiskSnapshots.
func (i images) TakeDisk(ctx context.Context, disk plugins.DiskSpec, name string) error {
	return i.change(ctx, "-c", disk, name)
}

// ApplyDisk implements plugins.DiskSnapshots.
func (i images) ApplyDisk(ctx context.Context, disk plugins.DiskSpec, name string) error {
	return i.change(ctx, "-a", disk, name)
}

// DropDisk implements plugins.DiskSnapshots.
func (i images) DropDisk(ctx context.Context, disk plugins.DiskSpec, name string) error {
	return i.change(ctx, "-d", disk, name)
}
