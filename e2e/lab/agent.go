package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// agentProgram is the guest's agent, as its package has it.
const agentProgram = "usr/sbin/qemu-ga"

// libraryLine is a line of ldd that names a file.
var libraryLine = regexp.MustCompile(`(?:=> )?(/\S+) \(0x`)

// addAgent puts the guest's agent into the guest, with the libraries of this
// machine that it needs. The emulator needs the same ones.
func addAgent(c *cpioWriter, root string) error {
	program := filepath.Join(root, agentProgram)
	out, err := exec.Command("ldd", program).Output()
	if err != nil {
		return fmt.Errorf("libraries of the guest's agent: %w", err)
	}
	made := map[string]bool{"bin": true, "dev": true, "etc": true, "lib": true}
	add := func(name, from string) error {
		raw, err := os.ReadFile(from)
		if err != nil {
			return fmt.Errorf("library of the guest's agent: %w", err)
		}
		parts := strings.Split(name, "/")
		for i := 1; i < len(parts); i++ {
			if dir := strings.Join(parts[:i], "/"); !made[dir] {
				c.dir(dir)
				made[dir] = true
			}
		}
		c.file(name, 0o755, raw)
		return nil
	}
	if err := add(agentProgram, program); err != nil {
		return err
	}
	for _, found := range libraryLine.FindAllStringSubmatch(string(out), -1) {
		if err := add(strings.TrimPrefix(found[1], "/"), found[1]); err != nil {
			return err
		}
	}
	c.file("etc/passwd", 0o644, []byte("root:x:0:0:root:/:/bin/sh\n"))
	c.file("etc/shadow", 0o600, []byte("root:*:19000:0:99999:7:::\n"))
	return nil
}
