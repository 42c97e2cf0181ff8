package httpapi

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"strconv"
	"strings"
)

// Token returns the Consistency-Token of a version of a resource, named as in "orders/ID" with the ID as
// stored: a read model that is given it waits until it shows that version. It is signed with [Config.TokenKey]
// and good for that resource alone.
func (a *API) Token(resource string, version int64) string {
	text := strconv.FormatInt(version, 10)
	return text + "." + base64.RawURLEncoding.EncodeToString(a.sign(resource, text))
}

// ReadToken returns the version that the request's Consistency-Token names, 0 when it has none. What nobody
// here has signed for the resource is invalid-token.
func (a *API) ReadToken(r *http.Request, resource string) (int64, error) {
	given := r.Header.Values("Consistency-Token")
	if len(given) == 0 {
		return 0, nil
	}
	text, signature, _ := strings.Cut(given[0], ".")
	mac, err := base64.RawURLEncoding.Strict().DecodeString(signature)
	if err != nil || len(given) > 1 || !hmac.Equal(mac, a.sign(resource, text)) {
		return 0, Fail(InvalidToken, "")
	}
	version, err := strconv.ParseInt(text, 10, 64)
	if err != nil || version < 1 {
		return 0, Fail(InvalidToken, "")
	}
	return version, nil
}

// sign returns half a MAC, which is twice what guessing takes (RFC 2104, section 5).
func (a *API) sign(resource, version string) []byte {
	mac := hmac.New(sha256.New, a.cfg.TokenKey)
	mac.Write([]byte(resource + "\n" + version))
	return mac.Sum(nil)[:sha256.Size/2]
}
