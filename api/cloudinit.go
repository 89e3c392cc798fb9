package api

import (
	"fmt"
	"path"
	"strings"
)

const cloudInitListMax = 256

func (v *VM) checkCloudInit(p *problems) {
	c := v.CloudInit
	if c == nil {
		return
	}
	if c.Hostname != "" {
		p.addErr(CheckName("cloud_init.hostname", c.Hostname))
	}
	total := len(c.Network)
	if len(c.Users) > CloudInitUsersMax || len(c.Files) > CloudInitFilesMax || len(c.Packages) > cloudInitListMax || len(c.Commands) > cloudInitListMax {
		p.add("cloud_init", "has too many parts").Allow("at most %d users, %d files, %d packages, %d commands",
			CloudInitUsersMax, CloudInitFilesMax, cloudInitListMax, cloudInitListMax)
		return
	}
	for i, u := range c.Users {
		at := fmt.Sprintf("cloud_init.users[%d].", i)
		p.addErr(CheckName(at+"name", u.Name))
		checkText(p, at+"password_hash", u.PasswordHash, 255)
		if u.PasswordHash != "" && !strings.HasPrefix(u.PasswordHash, "$") {
			p.add(at+"password_hash", "is not a hash").Allow("crypt(5) form, as mkpasswd prints; never a password")
		}
		for j, k := range u.SSHKeys {
			checkText(p, fmt.Sprintf("%sssh_keys[%d]", at, j), k, 8192)
			total += len(k)
		}
	}
	for i, name := range c.Packages {
		const chars = "abcdefghijklmnopqrstuvwxyz0123456789+-.:"
		if name == "" || len(name) > 255 || strings.Trim(name, chars) != "" || name[0] == '-' {
			p.add(fmt.Sprintf("cloud_init.packages[%d]", i), "is %q", name).Allow("a Debian package name")
		}
	}
	for i, f := range c.Files {
		at := fmt.Sprintf("cloud_init.files[%d].", i)
		checkText(p, at+"path", f.Path, 4096)
		if !path.IsAbs(f.Path) || path.Clean(f.Path) != f.Path {
			p.add(at+"path", "is %q", f.Path).Allow("a clean absolute path")
		}
		if f.Mode != "" && (len(f.Mode) != 4 || strings.Trim(f.Mode, "01234567") != "") {
			p.add(at+"mode", "is %q", f.Mode).Allow("four octal digits, as 0644")
		}
		total += len(f.Content)
	}
	for i, argv := range c.Commands {
		if len(argv) == 0 || len(argv) > cloudInitListMax {
			p.add(fmt.Sprintf("cloud_init.commands[%d]", i), "has %d arguments", len(argv)).Allow("1 to %d", cloudInitListMax)
		}
		for _, a := range argv {
			total += len(a)
		}
	}
	if total > CloudInitMax {
		p.add("cloud_init", "has %d bytes", total).Allow("at most %d in all", CloudInitMax)
	}
}
