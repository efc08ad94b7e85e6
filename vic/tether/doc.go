// Package tether reaches into a container VM: its Client is the controller's
// side, its Server runs in the guest under PID 1.
//
// # Carrier and trust
//
// The guest listens on [Port] of its NICs and controllers dial it, so that any
// number of them reach a running container within a round trip and nothing in
// the guest waits for a controller. The protocol itself asks for no more than
// a reliable byte stream, a net.Conn. The stream carries SSH (RFC 4251 to
// 4254) with the guest as server. A guest makes a host key at each boot and
// publishes it in its [Status]; the client takes that key and no other. The
// guest takes no password and no plain key, only user certificates that an
// authority of its [Config] signed (OpenSSH PROTOCOL.certkeys) for the
// container's ID or for [ControllerPrincipal]. A controller that it lets in may
// change these authorities (see [Client.SetAuthorities]).
//
// # What travels
//
// Every attachment, log stream and call is an SSH channel of its own, so a
// slow reader of one does not hold up another. Where SSH has a message it is
// used: channel data and extended data for the output, "window-change",
// "signal", "exit-status" and "exit-signal".
// What SSH lacks are JSON documents of a bounded size in private channel types
// and requests (RFC 4251 section 6).
//
// # Output
//
// A [Recorder] keeps the container's output in a log file on its own disk and
// the end of it in memory. An attacher that falls behind the memory reads on
// from the file, byte for byte, so a slow or stopped attacher neither blocks
// the process nor loses anything, and the guest's memory stays bounded.
//
// # Beside the main process
//
// An [ExecSpec] runs a further process, on a channel of its own that is opened
// with all of its parameters. [Client.Top] and [Client.Stats] look at the container,
// [Client.Pause] freezes it, [Client.TarOut] and [Client.TarIn] carry files. What the
// guest's own code must do for that is in small interfaces of [ServerConfig].
//
// # Ownership
//
// NewClient takes over its connection and Close closes it. Attachments and log
// readers belong to their client; each has a Close (or Detach) of its own.
package tether
