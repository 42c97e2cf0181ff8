package openapi

import (
	"encoding/json"
	"maps"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"converge/producers/httpapi"
)

func served(t *testing.T) *httpapi.API {
	t.Helper()
	api, err := httpapi.New(httpapi.Config{})
	if err != nil {
		t.Fatal(err)
	}
	Routes(api)
	return api
}

func ask(api *httpapi.API, method, path, etag string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "http://127.0.0.1"+path, nil)
	if etag != "" {
		r.Header.Set("If-None-Match", etag)
	}
	w := httptest.NewRecorder()
	api.ServeHTTP(w, r)
	return w
}

func TestWhoHasTheDocumentIsNotSentItAgain(t *testing.T) {
	api := served(t)
	for path, media := range map[string]string{
		"/openapi.json": "application/json", "/docs": "text/html", "/docs/docs.js": "text/javascript", "/docs/swagger-ui.css": "text/css", "/docs/LICENSE": "text/plain",
	} {
		first := ask(api, "GET", path, "")
		etag := first.Header().Get("ETag")
		if first.Code != 200 || etag == "" || !strings.HasPrefix(first.Header().Get("Content-Type"), media) || first.Header().Get("Cache-Control") != "no-cache" {
			t.Errorf("GET %s: %d %v", path, first.Code, first.Header())
		}
		if again := ask(api, "GET", path, etag); again.Code != 304 || again.Body.Len() != 0 || again.Header().Get("ETag") != etag {
			t.Errorf("GET %s with its ETag: %d %v", path, again.Code, again.Header())
		}
		if stale := ask(api, "GET", path, `"1"`); stale.Code != 200 {
			t.Errorf("GET %s with another ETag: %d", path, stale.Code)
		}
	}
	if unknown := ask(api, "GET", "/docs/docs.html", ""); unknown.Code != 404 {
		t.Errorf("a file that is not there: %d", unknown.Code)
	}
}

func TestThePageMayLoadFromHereAlone(t *testing.T) {
	for directive := range strings.SplitSeq(ask(served(t), "GET", "/docs", "").Header().Get("Content-Security-Policy"), "; ") {
		name, sources, _ := strings.Cut(directive, " ")
		for source := range strings.FieldsSeq(sources) {
			if source != "'none'" && source != "'self'" && (name != "img-src" || source != "data:") {
				t.Errorf("the policy lets the page have %s from %s", name, source)
			}
		}
	}
}

// reach returns what a reference within the document points to.
func reach(t *testing.T, document any, ref string) any {
	t.Helper()
	for name := range strings.SplitSeq(strings.TrimPrefix(ref, "#/"), "/") {
		name, err := url.PathUnescape(strings.NewReplacer("~1", "/", "~0", "~").Replace(name))
		if err != nil {
			t.Fatal(err)
		}
		object, _ := document.(map[string]any)
		if document = object[name]; document == nil {
			t.Fatalf("%s points nowhere: there is no %s", ref, name)
		}
	}
	return document
}

// walk calls each with every object in v and where it is.
func walk(v any, at string, each func(at string, object map[string]any)) {
	switch v := v.(type) {
	case map[string]any:
		each(at, v)
		for name, member := range v {
			walk(member, at+"/"+strings.NewReplacer("~", "~0", "/", "~1").Replace(name), each)
		}
	case []any:
		for _, item := range v {
			walk(item, at, each)
		}
	}
}

func parsed(t *testing.T) map[string]any {
	t.Helper()
	var document map[string]any
	if err := json.Unmarshal(Document, &document); err != nil {
		t.Fatal(err)
	}
	return document
}

func TestEveryComponentIsThereAndUsed(t *testing.T) {
	document := parsed(t)
	used := map[string]bool{"#/components/responses/MethodNotAllowed": true} // of every path, and so of no operation
	walk(document, "#", func(_ string, object map[string]any) {
		if ref, ok := object["$ref"].(string); ok {
			reach(t, document, ref)
			used[ref] = true
		}
	})
	components := document["components"].(map[string]any)
	for _, kind := range []string{"parameters", "headers", "responses", "schemas"} {
		for name := range components[kind].(map[string]any) {
			if ref := "#/components/" + kind + "/" + name; !used[ref] {
				t.Errorf("nothing refers to %s", ref)
			}
		}
	}
}

// What is sent must be closed, so that a member that nobody knows is an error in the description too; and
// every link must lead to an operation, by parameters that it has.
func TestRequestsAreClosedAndLinksLeadSomewhere(t *testing.T) {
	document := parsed(t)
	operations := map[string]map[string]any{}
	walk(document["paths"], "#/paths", func(at string, object map[string]any) {
		id, ok := object["operationId"].(string)
		if _, is := object["responses"]; !ok || !is { // links name operations too
			return
		}
		if operations[id] != nil {
			t.Errorf("two operations are called %s", id)
		}
		operations[id] = object
		body, _ := object["requestBody"].(map[string]any)
		walk(body["content"], at, func(_ string, media map[string]any) {
			if ref, ok := media["$ref"].(string); ok {
				walk(reach(t, document, ref), ref, func(at string, schema map[string]any) {
					if schema["type"] == "object" && schema["additionalProperties"] != false {
						t.Errorf("%s lets anything in", at)
					}
				})
			}
		})
	})
	walk(document["paths"], "#/paths", func(at string, object map[string]any) {
		links, _ := object["links"].(map[string]any)
		for name, l := range links {
			link := l.(map[string]any)
			target := operations[link["operationId"].(string)]
			var has []string
			for _, p := range asList(target["parameters"]) {
				parameter := reach(t, document, p.(map[string]any)["$ref"].(string)).(map[string]any)
				has = append(has, parameter["name"].(string))
			}
			for parameter := range link["parameters"].(map[string]any) {
				if !slices.Contains(has, parameter) {
					t.Errorf("%s/links/%s gives %s, which %v has not", at, name, parameter, link["operationId"])
				}
			}
		}
	})
}

func asList(v any) []any {
	list, _ := v.([]any)
	return list
}

func TestTheViewersFilesAreNamed(t *testing.T) {
	var named []string
	for _, name := range asList(reach(t, parsed(t), "#/components/parameters/DocsFile/schema/enum")) {
		named = append(named, name.(string))
	}
	slices.Sort(named)
	if diff := cmp.Diff(slices.Sorted(maps.Keys(files)), named); diff != "" {
		t.Errorf("files served (-) and named (+):\n%s", diff)
	}
}
