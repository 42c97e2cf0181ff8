package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"converge/producers/catalog"
	"converge/producers/httpapi"
	"converge/producers/openapi"
	"converge/producers/outbox"
	"converge/schemas"
)

// description is what the tests read of the OpenAPI document.
type description struct {
	Paths      map[string]map[string]operation
	Components struct {
		Parameters map[string]parameter
		Schemas    map[string]struct {
			Enum       []string
			Properties map[string]struct{ Enum []string }
		}
		Headers   map[string]struct{ Required bool }
		Responses map[string]struct {
			Headers map[string]reference
			Content map[string]struct {
				Schema struct {
					Properties struct {
						Type struct {
							Const string
							Enum  []string
						}
						Status struct{ Const int }
					}
				}
			}
		}
	}
}

type parameter struct {
	reference
	Name   string
	In     string
	Schema struct{ Enum []string }
}

type operation struct {
	OperationID string
	Parameters  []parameter
	RequestBody *struct{}
	Security    *[]map[string][]string
	Responses   map[string]struct {
		reference
		Headers map[string]reference
	}
}

type reference struct {
	Ref string `json:"$ref"`
}

// named returns the last name of the reference.
func (r reference) named() string { return r.Ref[strings.LastIndex(r.Ref, "/")+1:] }

func described(t *testing.T, document []byte) description {
	t.Helper()
	var d description
	if err := json.Unmarshal(document, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// operations returns the document's, as patterns of routes.
func (d description) operations() map[string]operation {
	all := map[string]operation{}
	for path, item := range d.Paths {
		for method, o := range item {
			all[strings.ToUpper(method)+" "+path] = o
		}
	}
	return all
}

// has reports whether the operation takes the parameter.
func (d description) has(o operation, in, name string) bool {
	return slices.ContainsFunc(o.Parameters, func(p parameter) bool {
		p = d.Components.Parameters[p.named()]
		return p.In == in && (name == "" || p.Name == name)
	})
}

// ofProcess are the routes of every process, which opshttp answers.
var ofProcess = []string{"GET /healthz", "GET /readyz", "GET /metrics"}

// allRoutes returns the API of a process that runs every service, on nothing.
func allRoutes(t *testing.T) []string {
	t.Helper()
	api, err := httpapi.New(httpapi.Config{})
	if err != nil {
		t.Fatal(err)
	}
	openapi.Routes(api)
	codec := schemas.NewCodec(schemas.JSON, schemas.IDs{})
	for _, s := range services() {
		if p := s.open(deps{outbox: outbox.New(codec), codec: codec, log: slog.New(slog.DiscardHandler)}); p.routes != nil {
			p.routes(api)
		}
	}
	return append(api.Routes(), ofProcess...)
}

// disagreements says where the document and the routes differ.
func disagreements(t *testing.T, document []byte, routes []string) []string {
	t.Helper()
	var found []string
	operations := described(t, document).operations()
	for _, route := range routes {
		if _, ok := operations[route]; !ok {
			found = append(found, "not described: "+route)
		}
	}
	for route := range operations {
		if !slices.Contains(routes, route) {
			found = append(found, "described and not there: "+route)
		}
	}
	slices.Sort(found)
	return found
}

func TestTheDocumentDescribesEveryRouteAndNoOther(t *testing.T) {
	routes := allRoutes(t)
	for _, difference := range disagreements(t, openapi.Document, routes) {
		t.Error(difference)
	}
}

func TestARouteThatIsNotDescribedIsFound(t *testing.T) {
	routes := allRoutes(t)
	for plant, want := range map[string]string{"POST /orders": "described and not there: POST /orders", "GET /products": "described and not there: GET /products"} {
		fewer := slices.DeleteFunc(slices.Clone(routes), func(route string) bool { return route == plant })
		if diff := gocmp.Diff([]string{want}, disagreements(t, openapi.Document, fewer)); diff != "" {
			t.Errorf("without %s:\n%s", plant, diff)
		}
	}
	if diff := gocmp.Diff([]string{"not described: DELETE /orders"}, disagreements(t, openapi.Document, append(routes, "DELETE /orders"))); diff != "" {
		t.Errorf("with a route that nobody described:\n%s", diff)
	}
}

func TestTheDocumentNamesEveryTypeOfProblem(t *testing.T) {
	d := described(t, openapi.Document)
	var types []string
	for _, name := range httpapi.Problems() {
		types = append(types, "/problems/"+name)
	}
	named := d.Components.Schemas["Problem"].Properties["type"].Enum
	if diff := gocmp.Diff(types, slices.Sorted(slices.Values(named))); diff != "" {
		t.Errorf("types of problems that there are (-) and that are described (+):\n%s", diff)
	}
	if diff := gocmp.Diff(httpapi.Problems(), slices.Sorted(slices.Values(d.Components.Parameters["ProblemName"].Schema.Enum))); diff != "" {
		t.Errorf("pages of problems that there are (-) and that are described (+):\n%s", diff)
	}
	for name, response := range d.Components.Responses {
		p := response.Content["application/problem+json"].Schema.Properties
		for _, kind := range append(p.Type.Enum, p.Type.Const) {
			if kind == "" {
				continue
			}
			if !slices.Contains(types, kind) {
				t.Errorf("the response %s has %s, which is no type", name, kind)
			} else if got := httpapi.NewProblem(strings.TrimPrefix(kind, "/problems/"), "").Status; got != p.Status.Const {
				t.Errorf("the response %s has %s with status %d, which has %d", name, kind, p.Status.Const, got)
			}
		}
	}
}

func TestTheDocumentKnowsTheCatalog(t *testing.T) {
	d := described(t, openapi.Document)
	var skus []string
	for _, p := range catalog.Products() {
		skus = append(skus, p.SKU)
	}
	if diff := gocmp.Diff(skus, d.Components.Schemas["SKU"].Enum); diff != "" {
		t.Errorf("SKUs that there are (-) and that are described (+):\n%s", diff)
	}
	if diff := gocmp.Diff(catalog.PaymentMethods(), d.Components.Schemas["PaymentMethod"].Enum); diff != "" {
		t.Errorf("payment methods that there are (-) and that are described (+):\n%s", diff)
	}
}

// What the API answers for reasons that operations share stands with each that has the reason.
func TestEveryOperationHasTheStatusesThatItShares(t *testing.T) {
	d := described(t, openapi.Document)
	operations := d.operations()
	for _, route := range slices.SortedFunc(maps.Keys(operations), cmp.Compare[string]) {
		if slices.Contains(ofProcess, route) {
			continue
		}
		o := operations[route]
		want := []int{403, 429, 500}
		public := o.Security != nil && len(*o.Security) == 0
		if !public {
			want = append(want, 401, 503)
		}
		method, _, _ := strings.Cut(route, " ")
		if d.has(o, "path", "") {
			want = append(want, 404)
		}
		if o.RequestBody != nil {
			want = append(want, 400, 408, 413, 415, 422)
		}
		if d.has(o, "header", "If-None-Match") && method == "GET" {
			want = append(want, 304)
		}
		if d.has(o, "header", "Consistency-Token") {
			want = append(want, 400, 503)
		}
		switch method {
		case "POST":
			if !d.has(o, "header", "Idempotency-Key") {
				t.Errorf("%s takes no Idempotency-Key", route)
			}
			want = append(want, 409, 410)
		case "PUT", "PATCH":
			if !d.has(o, "header", "If-Match") || !d.has(o, "header", "If-None-Match") {
				t.Errorf("%s takes no precondition", route)
			}
			want = append(want, 412, 428)
		}
		for _, status := range want {
			if _, ok := o.Responses[strconv.Itoa(status)]; !ok {
				t.Errorf("%s answers %d, which is not described", route, status)
			}
		}
	}
}

// Every answer to a change names the version that it made, for the next change and for the read models; every
// resource that can be asked for again says which version it is.
func TestAnswersThatHaveAVersionMustTellIt(t *testing.T) {
	lacking := func(document []byte) (found []string) {
		d := described(t, document)
		for route, o := range d.operations() {
			method, _, _ := strings.Cut(route, " ")
			for status, response := range o.Responses {
				headers := response.Headers
				if response.Ref != "" {
					headers = d.Components.Responses[response.named()].Headers
				}
				var want []string
				switch {
				case method != "GET" && status[0] == '2':
					want = []string{"ETag", "Consistency-Token"}
				case status == "304", status == "200" && d.has(o, "header", "If-None-Match"):
					want = []string{"ETag"}
				}
				for _, name := range want {
					if !d.Components.Headers[headers[name].named()].Required {
						found = append(found, route+" "+status+" "+name)
					}
				}
			}
		}
		slices.Sort(found)
		return found
	}
	for _, one := range lacking(openapi.Document) {
		t.Error(one)
	}
	for plant, want := range map[string]string{
		`"description": "For a read model: show at least this change", "required": true`:                        "PUT /stock/{sku} 200 Consistency-Token",
		"\"description\": \"The version, quoted: a strong entity tag (RFC 9110)\",\n        \"required\": true": "GET /payments/{id} 304 ETag",
	} {
		less := bytes.Replace(openapi.Document, []byte(plant), []byte(strings.Replace(plant, "true", "false", 1)), 1)
		if found := lacking(less); !slices.Contains(found, want) {
			t.Errorf("without %s: %q", plant, found)
		}
	}
}
