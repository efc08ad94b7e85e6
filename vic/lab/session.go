package lab

import (
	"context"
	"crypto/subtle"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// idleTime is after how long without a request a session ends, as on vCenter.
const idleTime = 30 * time.Minute

// sessions are the logins that are in use. The simulator keeps what a session
// made (filters, views) until its logout, which a killed client never sends.
type sessions struct {
	mu   sync.Mutex
	open map[string]*openSession // by key
	reqs map[string]*http.Request
	n    int64

	collectors collectors
}

type openSession struct {
	s    *simulator.Session
	last time.Time
	busy int // requests under way
}

func (s *sessions) touch(x *simulator.Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.open[x.Key]
	if o == nil {
		c := *x
		o = &openSession{s: &c}
		s.open[x.Key] = o
	}
	o.last = time.Now()
}

func (s *sessions) drop(key string) {
	s.mu.Lock()
	delete(s.open, key)
	s.mu.Unlock()
	s.collectors.drop(key)
}

func (s *sessions) has(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open[key] != nil
}

// enter notes an HTTP request. The simulator gives its methods a context that
// knows neither the request nor its end, but asks for the session's cookie: a
// number goes along with the cookie's value, and cookie finds the request by it.
func (s *sessions) enter(r *http.Request) (leave func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	id := strconv.FormatInt(s.n, 36)
	s.reqs[id] = r
	key := ""
	if c, err := r.Cookie(soap.SessionCookieName); err == nil {
		key = strings.Trim(c.Value, `"`)
	}
	r.Header.Set("Cookie", soap.SessionCookieName+"="+key+"|"+id)
	o := s.open[key]
	if o != nil {
		o.busy++
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.reqs, id)
		if o != nil {
			o.busy--
			o.last = time.Now()
		}
	}
}

// cookie tells the simulator a request's session.
func (s *sessions) cookie(ctx *simulator.Context) string {
	key, id, _ := strings.Cut(simulator.HTTPCookie(ctx), "|")
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.reqs[id]; r != nil {
		ctx.Context = r.Context()
	}
	return key
}

// expired takes out and returns the sessions that have been idle since before t.
func (s *sessions) expired(t time.Time) []*simulator.Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*simulator.Session
	for k, o := range s.open {
		if o.busy == 0 && o.last.Before(t) {
			out = append(out, o.s)
			delete(s.open, k)
		}
	}
	return out
}

// sweepSessions ends idle sessions until ctx does.
func (l *Lab) sweepSessions(ctx context.Context) {
	t := time.NewTicker(time.Minute)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			l.endSessions(now.Add(-idleTime))
		}
	}
}

func (l *Lab) endSessions(before time.Time) {
	for _, s := range l.sessions.expired(before) {
		l.sessions.collectors.drop(s.Key)
		lc := l.context()
		lc.Session = s
		l.reg.SessionManager().Logout(lc, &types.Logout{})
	}
}

// validLogin checks a user's name and password in constant time.
func (l *Lab) validLogin(user, password string) bool {
	u := subtle.ConstantTimeCompare([]byte(user), []byte(l.opts.User))
	p := subtle.ConstantTimeCompare([]byte(password), []byte(l.opts.Password))
	return u&p == 1
}

// authenticated tells whether a request for a file may pass: it comes with a
// session's cookie or with the password.
func (l *Lab) authenticated(r *http.Request) bool {
	if c, err := r.Cookie(soap.SessionCookieName); err == nil {
		b := l.reg.SessionManager().SessionIsActive(l.context(), &types.SessionIsActive{SessionID: strings.Trim(c.Value, `"`), UserName: l.opts.User})
		if a, ok := b.(*methods.SessionIsActiveBody); ok && a.Res != nil && a.Res.Returnval {
			return true
		}
	}
	user, password, ok := r.BasicAuth()
	return ok && l.validLogin(user, password)
}

// sessionHandler answers Login, which needs no session yet.
type sessionHandler struct{ base }

func (h *sessionHandler) Login(ctx *simulator.Context, req *types.Login) soap.HasFault {
	b := h.lab.reg.SessionManager().Login(ctx, req)
	if b.Fault() == nil {
		h.lab.count.add(func(c *Counters) { c.Logins++ })
		h.lab.sessions.touch(ctx.Session)
	}
	return b
}

func (h *sessionHandler) CloneSession(ctx *simulator.Context, req *types.CloneSession) soap.HasFault {
	b := h.lab.reg.SessionManager().CloneSession(ctx, req)
	if b.Fault() == nil {
		h.lab.count.add(func(c *Counters) { c.Logins++ })
		h.lab.sessions.touch(ctx.Session)
	}
	return b
}
