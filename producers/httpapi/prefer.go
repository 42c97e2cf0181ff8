package httpapi

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// maxWait bounds what Prefer: wait may ask for.
const maxWait = 30 * time.Second

// Preference is what a request prefers (RFC 7240). What cannot be read, and what stands twice but for its first
// time, is ignored.
type Preference struct {
	Wait   time.Duration // wait=N, at most 30 s
	Waits  bool          // whether wait=N was there
	Strict bool          // handling=strict
}

// ReadPreference reads all Prefer headers.
func ReadPreference(r *http.Request) Preference {
	var p Preference
	handled := false
	for _, part := range strings.Split(strings.Join(r.Header.Values("Prefer"), ","), ",") {
		preference, _, _ := strings.Cut(part, ";") // no parameter of these means anything
		name, value, _ := strings.Cut(preference, "=")
		value = strings.Trim(strings.TrimSpace(value), `"`)
		switch strings.ToLower(strings.TrimSpace(name)) {
		case "wait":
			if !p.Waits && value != "" && strings.Trim(value, "0123456789") == "" {
				seconds, err := strconv.Atoi(value)
				if p.Waits, p.Wait = true, maxWait; err == nil { // else it is more than any bound
					p.Wait = time.Duration(min(seconds, int(maxWait/time.Second))) * time.Second
				}
			}
		case "handling":
			if !handled && (value == "strict" || value == "lenient") {
				handled, p.Strict = true, value == "strict"
			}
		}
	}
	return p
}

// Waited tells, in Preference-Applied, for how long the answer would have waited.
func (p Preference) Waited(w http.ResponseWriter) {
	if p.Waits {
		w.Header().Add("Preference-Applied", "wait="+strconv.Itoa(int(p.Wait/time.Second)))
	}
}
