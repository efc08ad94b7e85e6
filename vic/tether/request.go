package tether

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"golang.org/x/crypto/ssh"
)

// RequestKey holds a Request, sealed by Seal, from a controller that cannot get
// through to the guest because another one has its only line. The key exists until
// the VM's power-off.
const RequestKey = "guestinfo.vic.request"

// A Request asks the guest to send its main process a signal, or to end it. It
// travels where anybody reads it and every process of the guest can write, so it
// is signed, and good for one boot of one container, once.
type Request struct {
	ID   string `json:"id"`
	Boot string `json:"boot"`
	// At is when it was made, in nanoseconds since 1970. A guest takes what was made
	// after all that it has taken.
	At int64 `json:"at"`
	// Signal by name; where Stop is set, the one that asks the process to end, or
	// empty for the container's own.
	Signal string `json:"signal,omitempty"`
	Stop   bool   `json:"stop,omitempty"`
	// Grace before SIGKILL, with Stop; negative is the container's own.
	Grace time.Duration `json:"grace,omitempty"`
}

// An Answer tells what became of the last Request that a guest took.
type Answer struct {
	At    int64        `json:"at"`
	Error *RemoteError `json:"error,omitempty"`
}

// sealed is what stands under RequestKey.
type sealed struct {
	Request     []byte `json:"request"`     // as it was signed
	Certificate string `json:"certificate"` // in authorized_keys form
	Signature   []byte `json:"signature"`   // of requestDomain and Request, as RFC 4253 section 6.6 has it
}

// requestDomain begins what is signed, so that no signature is good for anything
// else that an SSH key signs.
const requestDomain = "request" + domain + "\x00"

// Seal signs a request; signer is NewControllerSigner's.
func (r Request) Seal(signer ssh.Signer) (string, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return "", err
	}
	sig, err := signer.Sign(rand.Reader, append([]byte(requestDomain), b...))
	if err != nil {
		return "", fmt.Errorf("sign request: %w", err)
	}
	doc, err := json.Marshal(sealed{b, string(ssh.MarshalAuthorizedKey(signer.PublicKey())), ssh.Marshal(sig)})
	return string(doc), err
}

// Take does what a document under RequestKey asks for, where it has not been done,
// and tells whether it did anything that its status tells of. A document that no
// trusted controller signed for this boot is an error, and nothing is done.
func (s *Server) Take(doc string) (bool, error) {
	r, err := s.unseal(doc)
	if err != nil {
		return false, fmt.Errorf("%s: %w", RequestKey, err)
	}
	c := s.config.Container
	s.taking.Lock()
	defer s.taking.Unlock()
	if r.At <= s.taken {
		return false, nil
	}
	s.taken = r.At
	if r.Stop {
		err = c.Stop(r.Signal, r.Grace)
	} else {
		err = c.Signal(r.Signal)
	}
	a := &Answer{At: r.At}
	if err != nil {
		a.Error = remoteError(err)
	}
	c.answered(a)
	return true, nil
}

func (s *Server) unseal(doc string) (*Request, error) {
	var d sealed
	if err := decode("request", []byte(doc), &d); err != nil {
		return nil, err
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(d.Certificate))
	if err != nil {
		return nil, fmt.Errorf("%w: certificate: %v", ErrInvalid, err)
	}
	if _, err := s.ssh.PublicKeyCallback(nil, key); err != nil {
		return nil, err
	}
	var sig ssh.Signature
	if err := ssh.Unmarshal(d.Signature, &sig); err != nil {
		return nil, fmt.Errorf("%w: signature: %v", ErrInvalid, err)
	}
	if err := key.Verify(append([]byte(requestDomain), d.Request...), &sig); err != nil {
		return nil, fmt.Errorf("signature: %w", err)
	}
	r := new(Request)
	if err := decode("request", d.Request, r); err != nil {
		return nil, err
	}
	if own := s.config.Container.Status().Boot; r.ID != s.config.ID || r.Boot != own {
		return nil, errors.New("it is of another boot or container")
	}
	return r, nil
}

func (c *Container) answered(a *Answer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.Answered = a
}
