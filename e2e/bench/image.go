package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
	"github.com/debvisor/debvisor/plugins/dir"
	"github.com/debvisor/debvisor/plugins/outbound"
)

const imageBytes = 1 << 30

// imported measures the import of an image from a URL on this machine next to
// cp and sha256sum of the same file, and a linked clone of it.
func imported(ctx context.Context, b *bench) error {
	source := filepath.Join(b.dir, "image.raw")
	sum, err := randomFile(source, imageBytes)
	if err != nil {
		return err
	}
	defer os.Remove(source)
	store, err := dir.Open(dir.Config{})
	if err != nil {
		return err
	}
	var copies, imports, clones []time.Duration
	for range b.turns {
		took, err := copyAndSum(ctx, source)
		if err != nil {
			return err
		}
		copies = append(copies, took)
		imported, cloned, err := importOnce(ctx, store, source, sum, filepath.Join(b.dir, "pool"))
		if err != nil {
			return err
		}
		imports, clones = append(imports, imported), append(clones, cloned)
	}
	slices.Sort(copies)
	slices.Sort(imports)
	slices.Sort(clones)
	plain, ours, clone := copies[len(copies)/2], imports[len(imports)/2], clones[len(clones)/2]
	ratio := plain.Seconds() / ours.Seconds()
	b.add("1 GiB from a URL, verified and synced, to cp and sha256sum", fmt.Sprintf("%.2f (%.2f s to %.2f s)", ratio, ours.Seconds(), plain.Seconds()), "at least 0.8", ratio >= 0.8)
	b.add("linked clone of it", fmt.Sprintf("%.3f s", clone.Seconds()), "at most 0.3 s", clone <= 300*time.Millisecond)
	return nil
}

func randomFile(path string, size int64) (sum string, err error) {
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	_, err = io.CopyN(io.MultiWriter(f, h), rand.Reader, size)
	return hex.EncodeToString(h.Sum(nil)), errors.Join(err, f.Sync(), f.Close())
}

// copyAndSum is what somebody would do by hand.
func copyAndSum(ctx context.Context, source string) (time.Duration, error) {
	to := source + ".copy"
	defer os.Remove(to)
	began := time.Now()
	for _, args := range [][]string{{"cp", source, to}, {"sha256sum", to}} {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return 0, fmt.Errorf("%s: %w: %s", args[0], err, out)
		}
	}
	return time.Since(began), nil
}

// importOnce fetches the file over HTTP into a new pool, and clones it.
func importOnce(ctx context.Context, store *dir.Storage, source, sum, pool string) (imported, cloned time.Duration, err error) {
	defer os.RemoveAll(pool)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, 0, err
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, source) })}
	defer server.Close()
	go func() { _ = server.Serve(listener) }() // ends with Close
	client := outbound.New(outbound.Config{AllowHTTP: true, Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}})
	spec := plugins.PoolSpec{Name: "bench", Path: pool}
	image := plugins.ImageSpec{ID: uuid.NewString(), Format: api.FormatRaw, SHA256: sum, SizeBytes: imageBytes}
	began := time.Now()
	stage, err := store.StageImage(ctx, spec, image)
	if err != nil {
		return 0, 0, err
	}
	defer stage.Close()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+listener.Addr().String()+"/image", nil)
	if err != nil {
		return 0, 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, 0, err
	}
	defer resp.Body.Close()
	if _, err := io.CopyBuffer(struct{ io.Writer }{stage}, resp.Body, make([]byte, 1<<20)); err != nil {
		return 0, 0, err
	}
	if _, err := stage.Commit(ctx); err != nil {
		return 0, 0, err
	}
	imported, began = time.Since(began), time.Now()
	_, err = store.CreateVolume(ctx, spec, plugins.VolumeSpec{ID: uuid.NewString(), Format: api.FormatQCOW2, Image: image.ID})
	return imported, time.Since(began), err
}
