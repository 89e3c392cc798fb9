package libvirt

import (
	"os"
	"path/filepath"

	"github.com/debvisor/debvisor/api"
)

// defaultFirmwareDir is where Debian's package ovmf puts UEFI.
const defaultFirmwareDir = "/usr/share/OVMF"

// firmware is a UEFI build: code that guests share and the variables that each
// gets a copy of.
type firmware struct{ code, vars string }

// findFirmware looks for UEFI without secure boot, the 4 MiB build first.
func findFirmware(dir string) (*firmware, error) {
	for _, pair := range [][2]string{{"OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"}, {"OVMF_CODE.fd", "OVMF_VARS.fd"}} {
		f := firmware{code: filepath.Join(dir, pair[0]), vars: filepath.Join(dir, pair[1])}
		_, codeErr := os.Stat(f.code)
		if _, varsErr := os.Stat(f.vars); codeErr == nil && varsErr == nil {
			return &f, nil
		}
	}
	return nil, api.Errorf(api.CodeUnavailable, "this node has no UEFI firmware for guests").
		Do("install the Debian package ovmf, or use firmware = \"bios\"")
}
