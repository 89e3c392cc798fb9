package plugins

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/debvisor/debvisor/api"
)

// Layout of a qcow2 header, from docs/interop/qcow2.txt of QEMU.
const (
	qcow2Magic         = "QFI\xfb"
	qcow2HeaderV2      = 72
	qcow2HeaderV3      = 104
	qcow2HeaderMax     = 4096 // longest header that is believed, in bytes
	qcow2ClusterBitMin = 9
	qcow2ClusterBitMax = 21
	qcow2L1Max         = 32 << 20 / 8 // entries; QEMU opens no larger table
	qcow2DataFileName  = 0x44415441   // header extension: name of an external data file
	qcow2Corrupt       = 1 << 1       // incompatible features
	qcow2DataFile      = 1 << 2
	qcow2ExtendedL2    = 1 << 4
	qcow2Known         = 1<<5 - 1
	qcow2OffsetMask    = 0x00fffffffffffe00
	qcow2Compressed    = 1 << 62
)

// foreignMagics begin files that are disks of other formats. A raw image that
// starts with one of them is not what its format says.
func foreignMagics() map[string]string {
	return map[string]string{qcow2Magic: "qcow2", "QED\x00": "qed", "KDMV": "vmdk", "vhdxfile": "vhdx", "conectix": "vpc", "LUKS\xba\xbe": "luks"}
}

// InspectImage judges an image file of sizeBytes by its content, before any
// program that could be misled opens it, and returns its virtual size in bytes.
// CodeInvalid says what is wrong: another format than it claims, a backing or
// data file, encryption, a damaged header, or an end that was cut off. Any
// other error comes from r.
func InspectImage(r io.ReaderAt, sizeBytes int64, format string) (int64, error) {
	head := make([]byte, min(qcow2HeaderMax, max(sizeBytes, 0)))
	if n, err := r.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return 0, fmt.Errorf("read image header: %w", err)
	} else if n < len(head) {
		return 0, badImage("ends after %d of %d bytes", n, sizeBytes)
	}
	switch format {
	case api.FormatRaw:
		for magic, name := range foreignMagics() {
			if bytes.HasPrefix(head, []byte(magic)) {
				return 0, badImage("claims to be raw and starts like a %s file", name)
			}
		}
		const sector = 512
		return (sizeBytes + sector - 1) / sector * sector, nil
	case api.FormatQCOW2:
		q, err := parseQCOW2(head)
		if err != nil {
			return 0, err
		}
		return q.size, q.checkTables(r, sizeBytes)
	}
	return 0, api.Invalid("format", "is %q", format).Allow("qcow2, raw")
}

func badImage(format string, args ...any) *api.Error {
	return api.Invalid("image", format, args...).Do("upload an image that stands on its own, for instance from: qemu-img convert -O qcow2 SOURCE IMAGE")
}

type qcow2 struct {
	clusterBits uint32
	size        int64
	l1Entries   uint32
	l1Offset    int64
	entryBytes  int64 // of an L2 entry
}

func parseQCOW2(head []byte) (qcow2, error) {
	var q qcow2
	if !bytes.HasPrefix(head, []byte(qcow2Magic)) {
		return q, badImage("claims to be qcow2 and does not start like one")
	}
	if len(head) < qcow2HeaderV2 {
		return q, badImage("is cut off inside its header")
	}
	u32 := func(at int) uint32 { return binary.BigEndian.Uint32(head[at:]) }
	u64 := func(at int) uint64 { return binary.BigEndian.Uint64(head[at:]) }
	version, size := u32(4), u64(24)
	q.clusterBits, q.l1Entries, q.entryBytes = u32(20), u32(36), 8
	switch {
	case version != 2 && version != 3:
		return q, badImage("has qcow2 version %d; 2 and 3 are known", version)
	case u64(8) != 0 || u32(16) != 0:
		return q, badImage("has a backing file, which could name any file of the host")
	case u32(32) != 0:
		return q, badImage("is encrypted")
	case q.clusterBits < qcow2ClusterBitMin || q.clusterBits > qcow2ClusterBitMax:
		return q, badImage("has a damaged header (cluster bits %d)", q.clusterBits)
	case size == 0 || size > uint64(api.VolumeSizeMax):
		return q, badImage("has a virtual size of %d bytes", size).Allow("1 to %d", api.VolumeSizeMax)
	case q.l1Entries > qcow2L1Max || u64(40) > 1<<62 || u64(40)%(1<<q.clusterBits) != 0:
		return q, badImage("has a damaged header (L1 table)")
	}
	q.size, q.l1Offset = int64(size), int64(u64(40))
	if version == 2 {
		return q, nil
	}
	return q, q.parseV3(head)
}

func (q *qcow2) parseV3(head []byte) error {
	if len(head) < qcow2HeaderV3 {
		return badImage("is cut off inside its header")
	}
	features := binary.BigEndian.Uint64(head[72:])
	length := binary.BigEndian.Uint32(head[100:])
	switch {
	case features&qcow2DataFile != 0:
		return badImage("keeps its data in another file")
	case features&qcow2Corrupt != 0:
		return badImage("is marked as corrupt")
	case features&^qcow2Known != 0:
		return badImage("uses unknown qcow2 features %#x", features&^qcow2Known)
	case length < qcow2HeaderV3 || length > qcow2HeaderMax || length%8 != 0:
		return badImage("has a damaged header (length %d)", length)
	}
	if features&qcow2ExtendedL2 != 0 {
		q.entryBytes = 16
	}
	limit := min(len(head), 1<<q.clusterBits)
	for at := int(length); at+8 <= limit; {
		kind, size := binary.BigEndian.Uint32(head[at:]), binary.BigEndian.Uint32(head[at+4:])
		if kind == 0 {
			break
		}
		if kind == qcow2DataFileName {
			return badImage("names a data file")
		}
		if size > qcow2HeaderMax {
			return badImage("has a damaged header (extension of %d bytes)", size)
		}
		at += 8 + (int(size)+7)/8*8
	}
	return nil
}

// checkTables follows the map from guest to file offsets, so that a file that
// lost its end is found now and not when a guest reads there.
func (q *qcow2) checkTables(r io.ReaderAt, sizeBytes int64) error {
	cluster := int64(1) << q.clusterBits
	perL2 := cluster / q.entryBytes
	need := (q.size + cluster*perL2 - 1) / (cluster * perL2)
	if int64(q.l1Entries) < need {
		return badImage("has a damaged header (L1 table of %d entries for %d bytes)", q.l1Entries, q.size)
	}
	l1 := make([]byte, need*8)
	if q.l1Offset+int64(len(l1)) > sizeBytes {
		return badImage("is cut off: its tables lie beyond its end")
	}
	if _, err := r.ReadAt(l1, q.l1Offset); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read image table: %w", err)
	}
	l2 := make([]byte, cluster)
	// Every table has a cluster of its own in a sound file. A file that names one
	// table often would keep us reading for ever.
	left := sizeBytes / cluster
	for i := int64(0); i < need; i++ {
		at := int64(binary.BigEndian.Uint64(l1[i*8:]) & qcow2OffsetMask)
		if at == 0 {
			continue
		}
		if left--; left < 0 {
			return badImage("has more tables than clusters")
		}
		if at+cluster > sizeBytes {
			return badImage("is cut off: its tables lie beyond its end")
		}
		if _, err := r.ReadAt(l2, at); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read image table: %w", err)
		}
		for e := int64(0); e < perL2; e++ {
			if q.dataOffset(binary.BigEndian.Uint64(l2[e*q.entryBytes:])) >= sizeBytes {
				return badImage("is cut off: data lies beyond its end")
			}
		}
	}
	return nil
}

// dataOffset is where the data of an L2 entry starts in the file; 0 for none.
func (q *qcow2) dataOffset(entry uint64) int64 {
	if entry&qcow2Compressed != 0 {
		bits := 62 - (q.clusterBits - 8)
		return int64(entry & (1<<bits - 1))
	}
	return int64(entry & qcow2OffsetMask)
}
