package httpapi

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"strconv"
	"strings"
)

// macSize is half a MAC, which is twice what guessing takes (RFC 2104, section 5).
const macSize = sha256.Size / 2

// Token returns the Consistency-Token of a version of a resource, named as in "orders/ID" with the ID as
// stored: a read model that is given it waits until it shows that version. It is signed with [Config.TokenKey]
// and good for that resource alone. Clients need not know what is in it.
func (a *API) Token(resource string, version int64) string {
	text := strconv.FormatInt(version, 10) + " " + resource
	return base64.RawURLEncoding.EncodeToString(append(a.sign(text), text...))
}

// ReadToken returns the version that the request's Consistency-Token names, 0 when it has none. What nobody
// here has signed for the resource is invalid-token.
func (a *API) ReadToken(r *http.Request, resource string) (int64, error) {
	kind, id, _ := strings.Cut(resource, "/")
	named, version, err := a.ReadTokenOf(r, kind)
	if err != nil || version > 0 && named != id {
		return 0, Fail(InvalidToken, "")
	}
	return version, nil
}

// ReadTokenOf returns the resource of the kind, "orders" as in "orders/ID", that the request's
// Consistency-Token names, and its version; "" and 0 when it has none. What nobody here has signed, or has for
// another kind, is invalid-token.
func (a *API) ReadTokenOf(r *http.Request, kind string) (id string, version int64, err error) {
	given := r.Header.Values("Consistency-Token")
	if len(given) == 0 {
		return "", 0, nil
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(given[0])
	if err != nil || len(given) > 1 || len(raw) < macSize || !hmac.Equal(raw[:macSize], a.sign(string(raw[macSize:]))) {
		return "", 0, Fail(InvalidToken, "")
	}
	digits, resource, _ := strings.Cut(string(raw[macSize:]), " ")
	id, ofKind := strings.CutPrefix(resource, kind+"/")
	version, err = strconv.ParseInt(digits, 10, 64)
	if err != nil || version < 1 || !ofKind {
		return "", 0, Fail(InvalidToken, "")
	}
	return id, version, nil
}

func (a *API) sign(text string) []byte {
	mac := hmac.New(sha256.New, a.cfg.TokenKey)
	mac.Write([]byte(text))
	return mac.Sum(nil)[:macSize]
}
