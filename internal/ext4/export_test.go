package ext4

import (
	"bytes"
	"encoding/hex"
	"hash/crc32"
	"io"

	"github.com/klauspost/compress/zstd"
)

// IndexBody unwraps an index, IndexOf wraps a body with a checksum that fits, so that a fuzzer
// gets past both.
func IndexBody(p []byte) ([]byte, error) {
	z, err := zstd.NewReader(bytes.NewReader(p[indexHead:]))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	return io.ReadAll(z)
}

func IndexOf(body []byte) []byte {
	out := make([]byte, indexHead)
	copy(out, indexMagic)
	le.PutUint32(out[8:], indexVersion)
	le.PutUint64(out[12:], uint64(len(body)))
	le.PutUint32(out[20:], crc32.Checksum(body, castagnoli()))
	z, _ := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest))
	return z.EncodeAll(body, out)
}

// HashName is the directory hash.
var HashName = hashName

// HashSeed is the filesystem's hash seed as a UUID.
func HashSeed() string {
	h := hex.EncodeToString(fixedUUID[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// JournalStart is the block at which a filesystem's journal starts, JournalBlocks its length.
func JournalStart(fs *FS) uint64 { return fs.lay.journal }

const JournalBlocks = journalBlocks

// CRC is CRC-32C as ext4 and jbd2 use it.
var CRC = crc
