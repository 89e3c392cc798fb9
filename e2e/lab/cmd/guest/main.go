// Command guest makes the tiny Linux guest of the lab:
//
//	guest -out DIR
//
// writes DIR/tiny.qcow2 (boots by itself), DIR/vmlinuz and DIR/initrd.gz.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"

	"github.com/debvisor/debvisor/e2e/lab"
)

func main() {
	out := flag.String("out", "", "directory for the files")
	flag.Parse()
	if *out == "" || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "usage: guest -out DIR")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	guest, err := lab.TinyGuest(ctx, *out)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Printf("%s\n%s\n%s\n", guest.Disk, guest.Kernel, guest.Initrd)
}
