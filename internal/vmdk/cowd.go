package vmdk

import (
	"encoding/binary"
	"fmt"
	"io"
)

var le = binary.LittleEndian

const (
	cowdMagic       = "COWD"
	cowdHeader      = 4 // sectors
	cowdTable       = 4096
	cowdTableBytes  = 4 * cowdTable
	childGrain      = 128 // sectors, 64 KiB
	maxCOWDSectors  = 1<<32 - 1
	writeBufferSize = 1 << 20
)

// cowdLayout gives the number of grain tables and the first sector after the grain directory.
func cowdLayout(sectors, grain uint64) (tables, start uint64) {
	tables = (sectors + cowdTable*grain - 1) / (cowdTable * grain)
	return tables, cowdHeader + (tables*4+SectorSize-1)/SectorSize
}

func checkCOWDSize(bytes int64) error {
	if bytes <= 0 || bytes%SectorSize != 0 || bytes/SectorSize > maxCOWDSectors {
		return fmt.Errorf("vmdk: capacity %d: it must be a multiple of 512, and a vmfsSparse disk ends below 2 TiB", bytes)
	}
	return nil
}

// encodeCOWDHeader writes a COWDisk_Header.
func encodeCOWDHeader(sectors, grain, tables, free uint64) []byte {
	h := make([]byte, cowdHeader*SectorSize)
	copy(h, cowdMagic)
	le.PutUint32(h[4:], 1) // version
	le.PutUint32(h[8:], 3) // flags
	le.PutUint32(h[12:], uint32(sectors))
	le.PutUint32(h[16:], uint32(grain))
	le.PutUint32(h[20:], cowdHeader) // grain directory
	le.PutUint32(h[24:], uint32(tables))
	le.PutUint32(h[28:], uint32(free))
	return h
}

// WriteChild writes the extent of an empty vmfsSparse child that can be written to: grains of
// 64 KiB and every grain table in place, as QEMU needs (it does not add tables). The file takes
// 16 KiB for every 256 MiB of capacity, plus one sector or two.
func WriteChild(w io.Writer, bytes int64) error {
	if err := checkCOWDSize(bytes); err != nil {
		return err
	}
	sectors := uint64(bytes / SectorSize)
	tables, start := cowdLayout(sectors, childGrain)
	// New grains go to the end of the file: it must lie on a grain's boundary.
	end := start + tables*cowdTableBytes/SectorSize
	end = (end + childGrain - 1) / childGrain * childGrain
	head := encodeCOWDHeader(sectors, childGrain, tables, end)
	head = append(head, make([]byte, (start-cowdHeader)*SectorSize)...)
	for i := range tables {
		le.PutUint32(head[cowdHeader*SectorSize+4*i:], uint32(start+i*cowdTableBytes/SectorSize))
	}
	if _, err := w.Write(head); err != nil {
		return err
	}
	zeroes := make([]byte, cowdTableBytes)
	for left := (end - start) * SectorSize; left > 0; {
		n, err := w.Write(zeroes[:min(left, cowdTableBytes)])
		if err != nil {
			return err
		}
		left -= uint64(n)
	}
	return nil
}
