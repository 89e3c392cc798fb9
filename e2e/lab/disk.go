package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Layout of the bootable disk: an MBR and one FAT partition.
const (
	sectorBytes    = 512
	partitionStart = 2048 // sectors
	diskSectors    = 48 << 20 / sectorBytes
	bootCodeMax    = 440 // bytes of the MBR that are code
	partitionEntry = 446
	fat16LBA       = 0x0e
)

// bootConfig is what the boot loader does. It speaks on the serial line too.
const bootConfig = `SERIAL 0 115200
DEFAULT tiny
PROMPT 0
TIMEOUT 1
LABEL tiny
  LINUX vmlinuz
  INITRD initrd.gz
  APPEND ` + KernelArgs + `
`

// buildDisk writes a disk that boots the guest with BIOS. Nothing is mounted,
// so it works in containers.
func buildDisk(ctx context.Context, path string, g Guest) error {
	mbr, err := os.ReadFile("/usr/lib/syslinux/mbr/mbr.bin")
	if err != nil || len(mbr) > bootCodeMax {
		return fmt.Errorf("the boot code of syslinux-common: %d bytes, %w", len(mbr), err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	sector := make([]byte, sectorBytes)
	copy(sector, mbr)
	entry := sector[partitionEntry:]
	entry[0], entry[4] = 0x80, fat16LBA // bootable
	binary.LittleEndian.PutUint32(entry[8:], partitionStart)
	binary.LittleEndian.PutUint32(entry[12:], diskSectors-partitionStart)
	sector[510], sector[511] = 0x55, 0xaa
	_, err = f.Write(sector)
	if err = errors.Join(err, f.Truncate(diskSectors*sectorBytes), f.Close()); err != nil {
		return err
	}
	dir := filepath.Dir(path)
	config := filepath.Join(dir, "syslinux.cfg")
	if err := os.WriteFile(config, []byte(bootConfig), 0o644); err != nil {
		return err
	}
	offset := fmt.Sprint(partitionStart * sectorBytes)
	for _, step := range [][]string{
		{"mkfs.vfat", "-F", "16", "-n", "TINY", "-h", fmt.Sprint(partitionStart), "--offset", fmt.Sprint(partitionStart), path,
			fmt.Sprint((diskSectors - partitionStart) / 2)},
		{"mcopy", "-i", path + "@@" + offset, g.Kernel, "::vmlinuz"},
		{"mcopy", "-i", path + "@@" + offset, g.Initrd, "::initrd.gz"},
		{"mcopy", "-i", path + "@@" + offset, config, "::syslinux.cfg"},
		{"syslinux", "--offset", offset, "--install", path},
	} {
		if err := run(ctx, dir, step[0], step[1:]...); err != nil {
			return err
		}
	}
	return nil
}
