package httpapi

import (
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"slices"
	"strings"
)

// Problem is a problem document (RFC 9457). Its type is relative: /problems/ and a name from [Problems].
type Problem struct {
	Type     string       `json:"type"`
	Title    string       `json:"title"`
	Status   int          `json:"status,omitempty"` // 0 leaves it out: the problem is not this answer's
	Detail   string       `json:"detail,omitempty"`
	Resource string       `json:"resource,omitempty"` // path of what an expired key has made
	Errors   []FieldError `json:"errors,omitempty"`
}

// FieldError is one thing that is wrong with a body.
type FieldError struct {
	Pointer string `json:"pointer"` // JSON Pointer (RFC 6901)
	Detail  string `json:"detail"`
}

// kind is what there is to say of a type of problem.
type kind struct {
	status int
	title  string
	help   string
}

// Names of problem types.
const (
	KeyMissing           = "idempotency-key-missing"
	KeyInvalid           = "idempotency-key-invalid"
	KeyReused            = "idempotency-key-reused"
	KeyInFlight          = "idempotency-key-in-flight"
	PreconditionRequired = "precondition-required"
	PreconditionFailed   = "precondition-failed"
	ValidationFailed     = "validation-failed"
	MalformedRequest     = "malformed-request"
	UnsupportedMedia     = "unsupported-media-type"
	PayloadTooLarge      = "payload-too-large"
	RequestTimeout       = "request-timeout"
	NotFound             = "not-found"
	MethodNotAllowed     = "method-not-allowed"
	Conflict             = "conflict"
	TooLateToCancel      = "too-late-to-cancel"
	Unavailable503       = "dependency-unavailable"
	Unauthorized         = "unauthorized"
	InvalidToken         = "invalid-token"
	ReadModelLagging     = "read-model-lagging"
	KeyExpired           = "idempotency-key-expired"
	ForbiddenOrigin      = "forbidden-origin"
	TooManyRequests      = "too-many-requests"
	Internal             = "internal"
)

var kinds = map[string]kind{
	KeyMissing:           {400, "Idempotency-Key is missing", "Every POST carries an Idempotency-Key of 1 to 255 printable ASCII characters; a UUID does. Send one, and send the same one again when you do not know whether a request arrived."},
	KeyInvalid:           {400, "Idempotency-Key is invalid", "The header stands once and holds 1 to 255 printable ASCII characters, bare or as a quoted string."},
	KeyReused:            {422, "Idempotency-Key was used for another request", "The key belongs to a request with another body, method or path. That request stands. Use a new key for a new request."},
	KeyInFlight:          {409, "A request with this Idempotency-Key is being processed", "Ask again after the time in Retry-After; you will get its answer."},
	PreconditionRequired: {428, "A precondition is required", "Send If-Match with the ETag that you read, or If-None-Match: * to create."},
	PreconditionFailed:   {412, "The precondition does not hold", "The resource is not in the state that you named: read it again, then decide."},
	ValidationFailed:     {422, "The body breaks rules", "Each entry of errors points to a member and says what it must be."},
	MalformedRequest:     {400, "The request cannot be read", "The body must be one JSON value: UTF-8, no duplicate names, nothing behind it."},
	UnsupportedMedia:     {415, "The media type is not supported", "Send application/json, and as a PATCH application/merge-patch+json."},
	PayloadTooLarge:      {413, "The body is too large", "The limit is 64 KiB unless the server was told otherwise."},
	RequestTimeout:       {408, "The body did not arrive in time", "Send the request again."},
	NotFound:             {404, "There is no such resource", "It does not exist, or not yet, or is not yours."},
	MethodNotAllowed:     {405, "The method is not allowed here", "The Allow header names those that are."},
	Conflict:             {409, "The request conflicts with the state of the resource", "The detail says what stands in the way."},
	TooLateToCancel:      {409, "It is too late to cancel", "The order has passed the point up to which it can be taken back, or has failed otherwise."},
	Unavailable503:       {503, "A dependency is unavailable", "The database or the broker is away. Nothing was done. Send the request again after the time in Retry-After, with the same Idempotency-Key."},
	Unauthorized:         {401, "A bearer token is required", "Send Authorization: Bearer and a token that this server knows."},
	InvalidToken:         {400, "The consistency token is invalid", "Send the Consistency-Token of an answer to a change of this resource, as it was."},
	ReadModelLagging:     {503, "The read model has not come so far yet", "The change is stored and on its way. Ask again after the time in Retry-After, or without Prefer: handling=strict to see what is there."},
	KeyExpired:           {410, "The answer for this Idempotency-Key is no longer kept", "Answers are kept for 72 hours unless the server was told otherwise. The request was carried out once and is not carried out again: resource, if there is one, is what it made. A new request takes a new key."},
	ForbiddenOrigin:      {403, "The origin or host is not allowed", "A page of another origin, or a host name that does not belong to this machine."},
	TooManyRequests:      {429, "Too many requests are being processed", "Send the request again after the time in Retry-After."},
	Internal:             {500, "Something went wrong here", "It is logged under the request id of the answer."},

	"insufficient-inventory": {0, "There is not enough stock", "The order failed: at least one product could not be set aside. Nothing was charged."},
	"payment-declined":       {409, "The payment was declined", "The money could not be had. Whatever was set aside is back."},
	"shipment-refused":       {0, "No carrier serves the address", "The order failed: the payment is void and the stock is back."},
	"timed-out":              {0, "It was not finished in time", "The order or transfer failed: its deadline passed, and every step was undone."},
	"cancelled":              {0, "It was cancelled", "The order was taken back, and every step was undone."},
	"insufficient-funds":     {0, "There is not enough money on the account", "The transfer failed: the account that pays holds less than the amount. Nothing was moved."},
	"account-not-found":      {0, "There is no such account in this currency", "The transfer failed: one of its accounts does not exist, or is kept in another currency. What was debited is back."},
	"account-closed":         {0, "The account is closed", "The transfer failed: one of its accounts takes part in no transfers any more. What was debited is back."},
}

// Problems returns the names of all problem types, sorted.
func Problems() []string {
	names := make([]string, 0, len(kinds))
	for name := range kinds {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// NewProblem returns the problem of the named type; an unknown name is a programming error and panics.
func NewProblem(name, detail string) Problem {
	k, ok := kinds[name]
	if !ok {
		panic("httpapi: no problem type " + name)
	}
	return Problem{Type: "/problems/" + name, Title: k.title, Status: k.status, Detail: detail}
}

// Outcome returns the problem of a failure that is reported inside another resource, like an order's: its
// type is the reason with hyphens, and it has no status. An unknown reason gives the zero Problem.
func Outcome(reason string) Problem {
	name := strings.ReplaceAll(reason, "_", "-")
	if _, ok := kinds[name]; !ok {
		return Problem{}
	}
	p := NewProblem(name, "")
	p.Status = 0
	return p
}

// Error is a problem as an error: a handler returns it, and it becomes the answer.
type Error struct {
	Problem Problem
	Header  http.Header // added to the answer; nil is none
}

// Error returns the problem's type and detail.
func (e *Error) Error() string { return e.Problem.Type + ": " + e.Problem.Detail }

// Fail returns an [*Error] of the named type.
func Fail(name, detail string) *Error { return &Error{Problem: NewProblem(name, detail)} }

// retryAfter adds Retry-After, in seconds.
func (e *Error) retryAfter(seconds int) *Error {
	e.Header = http.Header{"Retry-After": {fmt.Sprint(seconds)}}
	return e
}

// hangUp makes the answer the connection's last: the rest of the request is not read.
func (e *Error) hangUp() *Error {
	e.Header = http.Header{"Connection": {"close"}}
	return e
}

// ofAnAnswer is what a handler may have said of the answer that the problem takes the place of.
var ofAnAnswer = []string{"Content-Encoding", "Content-Length", "ETag", "Last-Modified", "Location"}

func (e *Error) write(w http.ResponseWriter) {
	for _, name := range ofAnAnswer {
		w.Header().Del(name)
	}
	for name, values := range e.Header {
		w.Header()[name] = values
	}
	body, err := json.Marshal(e.Problem)
	if err != nil {
		panic(err) // strings and numbers only
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(e.Problem.Status)
	_, _ = w.Write(body) // the client left: nobody to tell
}

// Unavailable answers 503 dependency-unavailable: for a process that has not reached its dependencies yet.
func Unavailable(w http.ResponseWriter, _ *http.Request) {
	Fail(Unavailable503, "the service is starting and waits for its database, broker or registry; /readyz says for which").retryAfter(1).write(w)
}

var page = template.Must(template.New("problem").Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{{.Title}}</title>
<h1>{{.Title}}</h1><p>{{.Help}}</p>{{if .Status}}<p>Status {{.Status}}</p>{{end}}</html>
`))

func problemPage(w http.ResponseWriter, r *http.Request) error {
	k, ok := kinds[r.PathValue("type")]
	if !ok {
		return Fail(NotFound, "there is no such type of problem")
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'")
	return page.Execute(w, struct {
		Title, Help string
		Status      int
	}{k.title, k.help, k.status})
}
