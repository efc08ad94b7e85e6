package tether

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// A TreeEntry is a file of a running container's root filesystem.
type TreeEntry struct {
	// Path from the root, without a leading slash; the root itself is not listed.
	Path     string
	Mode     fs.FileMode
	UID, GID uint32
	Inode    uint64
	// Changed is when the inode was changed last, which no program can set.
	Changed time.Time
	// Mount tells that something else is mounted there: what is below it in the
	// filesystem cannot be seen and is not listed.
	Mount bool
}

// On a channelTree each entry is, in big endian, the path's length (2 bytes), mode,
// owner, group (4 each), inode, seconds (8 each), nanoseconds (4), a byte for Mount,
// and the path.
const (
	treeHeader  = 2 + 4*3 + 8*2 + 4 + 1
	maxTreePath = 4096
)

// Tree calls each with every file of the container's root filesystem: a directory
// before what is in it, names of a directory in the order of their bytes. An error
// of each ends it and is returned. That the order is right is not checked.
func (c *Client) Tree(ctx context.Context, each func(TreeEntry) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := c.receive(ctx, channelTree, struct{}{}, w, nil)
		_ = w.CloseWithError(err)
		done <- err
	}()
	err := readTree(bufio.NewReaderSize(r, 64<<10), each)
	_ = r.CloseWithError(errors.New("nobody reads on"))
	if err != nil {
		cancel()
	}
	if e := <-done; err == nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("tether: list files: %w", err)
	}
	return nil
}

func readTree(r io.Reader, each func(TreeEntry) error) error {
	var h [treeHeader]byte
	path := make([]byte, maxTreePath)
	for {
		if _, err := io.ReadFull(r, h[:]); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		b := binary.BigEndian
		n := int(b.Uint16(h[:]))
		if n == 0 || n > maxTreePath {
			return fmt.Errorf("%w: a path of %d bytes", ErrInvalid, n)
		}
		if _, err := io.ReadFull(r, path[:n]); err != nil {
			return whole(err)
		}
		e := TreeEntry{
			Path: string(path[:n]), Mode: fs.FileMode(b.Uint32(h[2:])), UID: b.Uint32(h[6:]), GID: b.Uint32(h[10:]), Inode: b.Uint64(h[14:]),
			Changed: time.Unix(int64(b.Uint64(h[22:])), int64(b.Uint32(h[30:]))).UTC(), Mount: h[34] != 0,
		}
		if strings.HasPrefix(e.Path, "/") {
			return fmt.Errorf("%w: path %.80q", ErrInvalid, e.Path)
		}
		if err := each(e); err != nil {
			return err
		}
	}
}

// tree serves one channelTree.
func (c *serverConn) tree(ctx context.Context, n ssh.NewChannel) {
	c.stream(ctx, n, func(f Files, w io.Writer, _ func(FileInfo) error) error {
		out := bufio.NewWriterSize(w, 32<<10)
		var h []byte
		err := f.Tree(func(e TreeEntry) error {
			if len(e.Path) > maxTreePath {
				return fmt.Errorf("%.80q…: a path of %d bytes", e.Path, len(e.Path))
			}
			b := binary.BigEndian
			h = b.AppendUint16(h[:0], uint16(len(e.Path)))
			h = b.AppendUint32(b.AppendUint32(b.AppendUint32(h, uint32(e.Mode)), e.UID), e.GID)
			h = b.AppendUint64(b.AppendUint64(h, e.Inode), uint64(e.Changed.Unix()))
			h = b.AppendUint32(h, uint32(e.Changed.Nanosecond()))
			mount := byte(0)
			if e.Mount {
				mount = 1
			}
			_, err := out.Write(append(append(h, mount), e.Path...))
			return err
		})
		return errors.Join(err, out.Flush())
	})
}
