package vsphere

import (
	"context"
	"fmt"
	"reflect"
	"sync"

	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// A Session is a login with a vCenter, one datacenter of it, and what waits on
// them. Its methods may be called by several goroutines.
type Session struct {
	Vim     *vim25.Client
	Watcher *Watcher
	// Lines has what is shared of VMs' serial lines, by the VMs' references.
	Lines sync.Map

	renewal *renewal
	inv     inventory
}

// SessionOptions say whose login it is.
type SessionOptions struct {
	// Login logs in with a round tripper. Where it is set the session is ours:
	// its own property collector is used, and a login that the server has
	// forgotten is made again. Where it is nil the client was logged in by
	// somebody else, whose collector is left alone.
	Login func(ctx context.Context, rt soap.RoundTripper) error
	// Datacenter by name or inventory path; empty where there is only one.
	Datacenter string
}

// NewSession looks up the datacenter and readies a session on a client that is
// logged in. Where o.Login is set, it takes the client's RoundTripper over.
func NewSession(ctx context.Context, c *vim25.Client, o SessionOptions) (*Session, error) {
	s := &Session{Vim: c}
	if o.Login != nil {
		s.renewal = &renewal{next: c.RoundTripper, login: o.Login}
		c.RoundTripper = s.renewal
	}
	s.Watcher = newWatcher(c, s.renewal)
	if err := s.open(ctx, o.Datacenter); err != nil {
		return nil, err
	}
	return s, nil
}

// Logout ends the login. One that the server has forgotten is no error.
func (s *Session) Logout(ctx context.Context) error {
	_, err := methods.Logout(ctx, s.Vim, &types.Logout{This: *s.Vim.ServiceContent.SessionManager})
	if isFault[types.NotAuthenticated](err) {
		return nil
	}
	return Judge(err)
}

// renewal logs in again where the server answers that there is no login: it
// ends sessions that rest (vCenter after 30 minutes) and those it forgets in a
// restart. A request that was refused so has not been carried out, so sending
// it again is safe.
type renewal struct {
	next  soap.RoundTripper
	login func(context.Context, soap.RoundTripper) error

	mu sync.Mutex
	n  int // logins since the first
}

func (r *renewal) RoundTrip(ctx context.Context, req, res soap.HasFault) error {
	n := r.epoch()
	err := r.next.RoundTrip(ctx, req, res)
	if !isFault[types.NotAuthenticated](err) {
		return err
	}
	switch req.(type) {
	case *methods.LoginBody, *methods.LogoutBody:
		return err
	}
	if e := r.renew(ctx, n); e != nil {
		return fmt.Errorf("%w, and to log in again: %w", err, e)
	}
	reflect.ValueOf(res).Elem().SetZero()
	return r.next.RoundTrip(ctx, req, res)
}

// renew logs in anew, unless somebody did since login n.
func (r *renewal) renew(ctx context.Context, n int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.n != n {
		return nil
	}
	if err := r.login(ctx, r.next); err != nil {
		return err
	}
	r.n++
	return nil
}

// epoch counts the logins; a nil renewal has one.
func (r *renewal) epoch() int {
	if r == nil {
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.n
}
