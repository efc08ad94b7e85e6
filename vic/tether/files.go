package tether

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"golang.org/x/crypto/ssh"
)

// FileInfo is what is known of a file of a running container.
type FileInfo struct {
	// Name is the last element of the path.
	Name string `json:"name"`
	// Mode has type, permissions, setuid, setgid and sticky.
	Mode fs.FileMode `json:"mode"`
	UID  uint32      `json:"uid"`
	GID  uint32      `json:"gid"`
	// Size in bytes; of a symlink, its target's length.
	Size     int64     `json:"size"`
	Links    uint32    `json:"links"`
	Modified time.Time `json:"modified"`
	Accessed time.Time `json:"accessed"`
	Changed  time.Time `json:"changed"`
	// Major and Minor of a device.
	Major uint32 `json:"major,omitempty"`
	Minor uint32 `json:"minor,omitempty"`
	// Link is a symlink's target, as it is.
	Link string `json:"link,omitempty"`
}

// TarInOptions are the details of TarIn.
type TarInOptions struct {
	// KeepTypes refuses an entry that would put something else in the place of a
	// directory, or a directory in the place of something else (ErrConflict).
	KeepTypes bool `json:"keepTypes,omitempty"`
}

// Files are the files of a running container, as its processes see them. Paths
// are looked up from the container's root; no link in them leads out of it. What
// does not exist is ErrNotFound.
type Files interface {
	// Lstat describes a file; a symlink itself.
	Lstat(path string) (FileInfo, error)
	// TarOut tells of a file and writes it, with all below it, as a tar.
	TarOut(w io.Writer, path string, started func(FileInfo) error) error
	// TarIn unpacks a tar into a directory.
	TarIn(r io.Reader, dir string, o TarInOptions) error
	// Tree lists the container's root filesystem; see Client.Tree.
	Tree(each func(TreeEntry) error) error
}

type pathParams struct {
	Path string `json:"path"`
}

// tarInRequest opens a channelTarIn, on which the tar follows, then requestEOF;
// the guest answers with a callAnswer.
type tarInRequest struct {
	Dir string `json:"dir"`
	TarInOptions
}

// On a channelTarOut, which a pathParams opens, the guest sends a requestFile with
// what the path is, then the tar, then a requestResult.
type tarResult struct {
	Error *RemoteError `json:"error,omitempty"`
}

// LstatFile describes a file of a running container; a symlink itself, unless the
// path ends in "/.".
func (c *Client) LstatFile(ctx context.Context, path string) (FileInfo, error) {
	var i FileInfo
	err := c.call(ctx, methodLstat, pathParams{path}, &i)
	return i, err
}

// TarOut writes a file or directory of a running container to w, as a tar in PAX
// format whose first entry has the path's last name. A symlink at the end of the
// path is written itself. Owners, modes, times, extended attributes and hard links
// are kept; sockets, and what is below the mounts of /dev, /proc and /sys, are
// left out. started, where it is not nil, hears of the path before anything is
// written. A file that becomes shorter while it is read is an error.
func (c *Client) TarOut(ctx context.Context, path string, w io.Writer, started func(FileInfo) error) error {
	if err := c.receive(ctx, channelTarOut, pathParams{path}, w, started); err != nil {
		return fmt.Errorf("tether: read files: %w", err)
	}
	return nil
}

// receive takes a stream whose end the guest tells by a requestResult.
func (c *Client) receive(ctx context.Context, kind string, params any, w io.Writer, started func(FileInfo) error) error {
	ch, requests, err := c.open(ctx, kind, params)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = ch.Close() })
	defer stop()
	defer ch.Close()
	info, result := make(chan FileInfo, 1), make(chan error, 1)
	go func() {
		end := error(io.ErrUnexpectedEOF)
		for r := range requests {
			switch r.Type {
			case requestFile:
				var i FileInfo
				if err := decode("file", r.Payload, &i); err == nil {
					select {
					case info <- i:
					default:
					}
				}
			case requestResult:
				var res tarResult
				end = decode("result", r.Payload, &res)
				if res.Error != nil {
					end = res.Error
				}
			}
			refuse(r)
		}
		close(info)
		result <- end
	}()
	select {
	case i, ok := <-info:
		if ok && started != nil {
			if err := started(i); err != nil {
				return err
			}
		}
	case <-ctx.Done():
		return ctx.Err()
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{w}, ch, make([]byte, 32<<10))
	if err != nil {
		return err
	}
	// The guest closes the channel behind its result.
	if err := <-result; ctx.Err() == nil {
		return err
	}
	return ctx.Err()
}

// TarIn unpacks a tar into a directory of a running container, which must exist.
// What is there is replaced, directories are kept and added to. Owners, modes,
// times, extended attributes, devices and hard links are made as the tar has them.
// An entry whose name leads out of the directory is ErrInvalid; symlinks in names
// are followed inside the container. What was unpacked before an error stays.
func (c *Client) TarIn(ctx context.Context, dir string, r io.Reader, o TarInOptions) error {
	if err := c.tarIn(ctx, dir, r, o); err != nil {
		return fmt.Errorf("tether: write files: %w", err)
	}
	return nil
}

func (c *Client) tarIn(ctx context.Context, dir string, r io.Reader, o TarInOptions) error {
	ch, requests, err := c.open(ctx, channelTarIn, tarInRequest{dir, o})
	if err != nil {
		return err
	}
	go ssh.DiscardRequests(requests)
	stop := context.AfterFunc(ctx, func() { _ = ch.Close() })
	defer stop()
	defer ch.Close()
	from := &source{r: r}
	_, err = io.CopyBuffer(struct{ io.Writer }{ch}, from, make([]byte, 32<<10))
	if from.err != nil {
		return from.err // The guest sees that the tar was cut off.
	}
	if err == nil {
		_, err = ch.SendRequest(requestEOF, false, nil)
	}
	if err == nil {
		err = ch.CloseWrite()
	}
	// A guest that refuses closes the channel after its answer.
	b, rerr := io.ReadAll(io.LimitReader(ch, maxDocument+1))
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case len(b) == 0 && err != nil:
		return whole(err)
	case rerr != nil:
		return rerr
	case len(b) == 0:
		return io.ErrUnexpectedEOF
	}
	var a callAnswer
	if err := decode("answer", b, &a); err != nil {
		return err
	}
	if a.Error != nil {
		return a.Error
	}
	return nil
}

// source remembers an error of a reader other than its end.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// files returns what answers for the container's files.
func (c *serverConn) files() (Files, error) {
	if _, err := c.server.config.Container.running(); err != nil {
		return nil, err
	}
	f := c.server.config.Files
	if f == nil {
		return nil, fmt.Errorf("%w: this guest does not hand out files", ErrUnsupported)
	}
	return f, nil
}

// fileTurn waits for the turn of one of the few who work on files at once.
func (c *serverConn) fileTurn(ctx context.Context) (done func(), err error) {
	select {
	case c.server.fileSlots <- struct{}{}:
		return func() { <-c.server.fileSlots }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (c *serverConn) lstat(ctx context.Context, q callRequest) (any, error) {
	var p pathParams
	if err := decode("path", q.Params, &p); err != nil {
		return nil, err
	}
	f, err := c.files()
	if err != nil {
		return nil, err
	}
	done, err := c.fileTurn(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	return f.Lstat(p.Path)
}

// tarOut serves one channelTarOut.
func (c *serverConn) tarOut(ctx context.Context, n ssh.NewChannel) {
	var q pathParams
	if err := decode("path", n.ExtraData(), &q); err != nil {
		_ = n.Reject(ssh.Prohibited, err.Error())
		return
	}
	c.stream(ctx, n, func(f Files, w io.Writer, started func(FileInfo) error) error { return f.TarOut(w, q.Path, started) })
}

// stream sends what f writes, and then whether that was all.
func (c *serverConn) stream(ctx context.Context, n ssh.NewChannel, write func(f Files, w io.Writer, started func(FileInfo) error) error) {
	ctx, ch, gone, cancel := accept(ctx, n, refuse)
	if ch == nil {
		return
	}
	defer cancel()
	defer ch.Close()
	go func() { _, _ = io.Copy(io.Discard, ch) }()
	send := func(kind string, v any) error {
		b, err := json.Marshal(v)
		if err == nil {
			_, err = ch.SendRequest(kind, false, b)
		}
		return err
	}
	f, err := c.files()
	if err == nil {
		var done func()
		if done, err = c.fileTurn(ctx); err == nil {
			err = write(f, ch, func(i FileInfo) error { return send(requestFile, i) })
			done()
		}
	}
	var r tarResult
	if err != nil {
		r.Error = remoteError(err)
	}
	_ = send(requestResult, r)
	_ = ch.CloseWrite()
	finish(ch, gone)
}

var errCutOff = errors.New("the tar was cut off")

// tarIn serves one channelTarIn.
func (c *serverConn) tarIn(ctx context.Context, n ssh.NewChannel) {
	var q tarInRequest
	if err := decode("tar", n.ExtraData(), &q); err != nil {
		_ = n.Reject(ssh.Prohibited, err.Error())
		return
	}
	eof := make(chan struct{}, 1)
	meant := make(chan struct{})
	ctx, ch, gone, cancel := accept(ctx, n, func(r *ssh.Request) {
		if r.Type == requestEOF {
			select {
			case eof <- struct{}{}:
				close(meant)
			default:
			}
		}
		refuse(r)
	})
	if ch == nil {
		return
	}
	defer cancel()
	defer ch.Close()
	f, err := c.files()
	if err == nil {
		var done func()
		if done, err = c.fileTurn(ctx); err == nil {
			err = f.TarIn(&untilMeant{ch, meant, gone}, q.Dir, q.TarInOptions)
			done()
		}
	}
	answer(ch, gone, nil, err)
}

// untilMeant makes an error of an end that the sender did not tell.
type untilMeant struct {
	r           io.Reader
	meant, gone <-chan struct{}
}

func (u *untilMeant) Read(p []byte) (int, error) {
	n, err := u.r.Read(p)
	if err == io.EOF && !told(u.meant, u.gone) {
		err = errCutOff
	}
	return n, err
}
