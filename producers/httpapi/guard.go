package httpapi

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// Local answers for next only what an open [API] without tokens would: requests for a loopback name or address, so
// that a page that rebinds its name to this machine gets nothing, and no changes that pages of another origin ask
// for. allowRemote lets any name through.
func Local(next http.Handler, allowRemote bool) http.Handler {
	origin := http.NewCrossOriginProtection()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if refusal := refuse(origin, r, allowRemote); refusal != nil {
			refusal.write(w)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// refuse returns why a request is not looked at.
func refuse(origin *http.CrossOriginProtection, r *http.Request, anyHost bool) *Error {
	if !anyHost && !loopback(r.Host) {
		return Fail(ForbiddenOrigin, "only names and addresses of this machine are answered")
	}
	if err := origin.Check(r); err != nil {
		return Fail(ForbiddenOrigin, "the request comes from a page of another origin")
	}
	return nil
}

func loopback(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.Trim(host, "[]")
	if strings.EqualFold(host, "localhost") || strings.HasSuffix(strings.ToLower(host), ".localhost") {
		return true
	}
	address, err := netip.ParseAddr(host)
	return err == nil && address.IsLoopback()
}

// Routed serves what mux has routes for; what it has none for gets the problem documents of an [API].
func Routed(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if handler, pattern := mux.Handler(r); pattern == "" {
			noRoute(w, r, handler)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// noRoute answers what the router has no route for, in our words: it knows 404 from 405 and redirects.
func noRoute(w http.ResponseWriter, r *http.Request, router http.Handler) {
	probe := &recorder{ResponseWriter: discard{header: http.Header{}}}
	router.ServeHTTP(probe, r)
	switch allow := probe.Header().Get("Allow"); {
	case probe.status == http.StatusMethodNotAllowed:
		refusal := Fail(MethodNotAllowed, "")
		refusal.Header = http.Header{"Allow": {allow}}
		refusal.write(w)
	case probe.status >= 300 && probe.status < 400:
		router.ServeHTTP(w, r)
	default:
		Fail(NotFound, "no resource has this path").write(w)
	}
}

type discard struct{ header http.Header }

func (d discard) Header() http.Header         { return d.header }
func (d discard) Write(p []byte) (int, error) { return len(p), nil }
func (d discard) WriteHeader(int)             {}
