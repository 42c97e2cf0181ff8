// Package openapi holds the description of the HTTP API (OpenAPI 3.1) and the pages to read it by. The
// description is written by hand: it is the contract, and the code is held to it.
//
// The guarantee: whichever services a process runs, it serves the whole description, of all of them; every
// route is in it, with every status that it answers, and nothing is in it that no service has. Tests in
// cmd/converge compare it with the routes, and make test-contract with what a running pipeline answers.
// It fails to hold for what those tests do not send, and for what net/http answers before any handler.
package openapi

import (
	"crypto/sha256"
	"embed"
	"encoding/binary"
	"net/http"

	"converge/producers/httpapi"
)

// Document is the description, as it is served.
//
//go:embed openapi.json
var Document []byte

// The viewer is Swagger UI 5.35.0 (npm swagger-ui-dist, Apache-2.0), untouched, and a page around it. It asks
// no other host for anything.
//
//go:embed viewer
var viewer embed.FS

const (
	script = "text/javascript; charset=utf-8"
	style  = "text/css; charset=utf-8"
	text   = "text/plain; charset=utf-8"
)

// files are what the page at /docs is made of, by their names below it.
var files = map[string]struct{ name, media string }{
	"docs.js":                          {"viewer/docs.js", script},
	"docs.css":                         {"viewer/docs.css", style},
	"swagger-ui-bundle.js":             {"viewer/vendor/swagger-ui-bundle.js", script},
	"swagger-ui-bundle.js.LICENSE.txt": {"viewer/vendor/swagger-ui-bundle.js.LICENSE.txt", text},
	"swagger-ui.css":                   {"viewer/vendor/swagger-ui.css", style},
	"LICENSE":                          {"viewer/vendor/LICENSE", text},
	"NOTICE":                           {"viewer/vendor/NOTICE", text},
}

// Routes adds the description and its pages to the API. They are the same for everybody, and need no token.
func Routes(api *httpapi.API) {
	api.HandlePublic("GET /openapi.json", serve(Document, "application/json"))
	api.HandlePublic("GET /docs", serve(read("viewer/docs.html"), "text/html; charset=utf-8"))
	handlers := map[string]httpapi.Handler{}
	for below, file := range files {
		handlers[below] = serve(read(file.name), file.media)
	}
	api.HandlePublic("GET /docs/{file}", func(w http.ResponseWriter, r *http.Request) error {
		handle, ok := handlers[r.PathValue("file")]
		if !ok {
			return httpapi.Fail(httpapi.NotFound, "the viewer has no such file")
		}
		return handle(w, r)
	})
}

func read(name string) []byte {
	content, err := viewer.ReadFile(name)
	if err != nil {
		panic(err) // it is compiled in
	}
	return content
}

// policy lets the page load and ask what this server has, and nothing else: no inline script or style, no
// other host. The viewer's style sheet has its icons within it, as data.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// serve returns the handler that gives the content to whoever does not have it. It changes with the binary
// alone, whose tag is the content's digest.
func serve(content []byte, media string) httpapi.Handler {
	digest := sha256.Sum256(content)
	version := int64(binary.BigEndian.Uint64(digest[:8]) >> 1)
	return func(w http.ResponseWriter, r *http.Request) error {
		w.Header().Set("Cache-Control", "no-cache")
		w.Header().Set("Content-Security-Policy", policy)
		w.Header().Set("Referrer-Policy", "no-referrer")
		if httpapi.NotModified(w, r, version) {
			return nil
		}
		return httpapi.Response{Status: http.StatusOK, Header: map[string]string{"Content-Type": media}, Body: content}.Write(w)
	}
}
