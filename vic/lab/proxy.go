package lab

import (
	"encoding/base64"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// guestProxy serves an HTTP proxy on loopback that connects to guests, for
// programs that are not in this process. It knows CONNECT and the lab's own
// login, and dials nothing but port groups' networks and VMs' serial ports.
func (l *Lab) guestProxy() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	s := &http.Server{Handler: http.HandlerFunc(l.serveProxy), ReadHeaderTimeout: 30 * time.Second}
	l.goDo(func() { _ = s.Serve(ln) })
	l.goDo(func() {
		<-l.closing.Done()
		_ = s.Close()
	})
	return "http://" + ln.Addr().String(), nil
}

func (l *Lab) serveProxy(w http.ResponseWriter, r *http.Request) {
	user, password, ok := proxyAuth(r)
	if !ok || !l.validLogin(user, password) {
		w.Header().Set("Proxy-Authenticate", `Basic realm="lab"`)
		http.Error(w, "log in as to the lab", http.StatusProxyAuthRequired)
		return
	}
	if r.Method != http.MethodConnect {
		http.Error(w, "CONNECT only", http.StatusMethodNotAllowed)
		return
	}
	dial := func() (net.Conn, error) { return l.DialGuest(r.Context(), r.Header.Get("Lab-Network"), r.Host) }
	if _, err := netip.ParseAddrPort(r.Host); err != nil {
		dial = func() (net.Conn, error) { return l.DialHost(r.Context(), r.Host) }
	}
	out, err := dial()
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	in, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		_ = out.Close()
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_ = in.SetDeadline(time.Time{})
	_, err = in.Write([]byte("HTTP/1.1 200 Connection established\r\n\r\n"))
	if n := buf.Reader.Buffered(); err == nil && n > 0 {
		// What the client sent before it had the answer.
		b, _ := buf.Reader.Peek(n)
		_, err = out.Write(b)
	}
	if err != nil {
		_, _ = in.Close(), out.Close()
		return
	}
	l.goDo(func() {
		done := make(chan struct{})
		go func() {
			select {
			case <-l.closing.Done():
				_, _ = in.Close(), out.Close()
			case <-done:
			}
		}()
		pipe(in, out)
		close(done)
	})
}

func proxyAuth(r *http.Request) (user, password string, ok bool) {
	v, ok := strings.CutPrefix(r.Header.Get("Proxy-Authorization"), "Basic ")
	if !ok {
		return "", "", false
	}
	b, err := base64.StdEncoding.DecodeString(v)
	if err != nil {
		return "", "", false
	}
	return strings.Cut(string(b), ":")
}
