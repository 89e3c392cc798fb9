package dir

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// SharedMark is the name of a file that says of a directory which is no mount
// point: this is the shared one. Only people make it.
const SharedMark = ".debvisor-shared"

// checkShared refuses a shared pool whose file system is not mounted on this
// machine: what was written there would be on this machine alone, and hidden
// by the mount later. The directory is a mount point, or has the mark.
func checkShared(spec plugins.PoolSpec) error {
	absent := func(text string) error {
		return api.Errorf(api.CodeUnavailable, "is shared, and %s %s on this node", spec.Path, text).On(api.KindPool, spec.Name).
			Do("mount its file system there; if it is a directory of a mounted one, mark it once: touch %s", filepath.Join(spec.Path, SharedMark))
	}
	switch mounted, err := mountPoint(spec.Path); {
	case errors.Is(err, fs.ErrNotExist):
		return absent("does not exist")
	case err != nil:
		return absent("cannot be looked at (" + err.Error() + ")")
	case mounted:
		return nil
	}
	if mark, err := os.Lstat(filepath.Join(spec.Path, SharedMark)); err != nil || !mark.Mode().IsRegular() {
		return absent("is no mount point")
	}
	return nil
}

// mountPoint reports whether a file system is mounted at the path.
func mountPoint(path string) (bool, error) {
	var stat unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_BASIC_STATS, &stat); err != nil {
		return false, err
	}
	return stat.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// damaged is the error about a file that cannot be used.
func damaged(pool plugins.PoolSpec, stored plugins.Stored) error {
	return api.Errorf(api.CodeUnavailable, "its file %s is damaged: %s", stored.Source.Path, stored.Damage).On(stored.Kind, stored.ID).
		Do("bring the file back from a backup, or delete the %s; the rest of pool %s can be used", stored.Kind, pool.Name)
}
