package lab

import (
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/vmware/govmomi/vim25/types"
)

// maxRequest bounds a SOAP request in bytes. vCenter's own limit is of this
// order.
const maxRequest = 32 << 20

// listen opens the API's listener.
func (l *Lab) listen() error {
	ln, err := net.Listen("tcp", l.opts.Listen)
	if err != nil {
		return err
	}
	l.listener = ln
	l.url = &url.URL{Scheme: "https", Host: ln.Addr().String(), Path: "/sdk"}
	return nil
}

// serve answers requests until the lab closes.
func (l *Lab) serve() {
	// The simulator compares logins with the URL's user only where this is not
	// its own default; ValidLogin then decides.
	u := *l.url
	u.User = url.UserPassword(l.opts.User, l.opts.Password)
	l.svc.Listen = &u
	sm := l.reg.SessionManager()
	sm.ServiceHostName = l.url.Host
	sm.ValidLogin = func(r *types.Login) bool { return l.validLogin(r.UserName, r.Password) }

	l.svc.RegisterSDK(l.reg, l.reg.Path+"/vimService")
	mux := http.NewServeMux()
	sdk := l.durably(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		leave := l.sessions.enter(r)
		defer leave()
		r.Body = http.MaxBytesReader(w, r.Body, maxRequest)
		l.svc.ServeSDK(w, r)
	}))
	mux.Handle(l.reg.Path, sdk)
	mux.Handle(l.reg.Path+"/vimService", sdk)
	mux.HandleFunc(l.reg.Path+"/vimServiceVersions.xml", l.svc.ServiceVersions)
	mux.HandleFunc("/folder/", l.serveFolder)

	l.http = &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 30 * time.Second,
		IdleTimeout:       5 * time.Minute,
		ErrorLog:          slog.NewLogLogger(l.log.Handler(), slog.LevelDebug),
		TLSConfig:         &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{l.id.tls}},
		ConnState: func(_ net.Conn, s http.ConnState) {
			if s == http.StateNew {
				l.count.add(func(c *Counters) { c.Connections++ })
			}
		},
	}
	l.goDo(func() { _ = l.http.ServeTLS(l.listener, "", "") })
}

// goDo runs f as a goroutine that Close waits for.
func (l *Lab) goDo(f func()) {
	l.wg.Add(1)
	go func() {
		defer l.wg.Done()
		f()
	}()
}
