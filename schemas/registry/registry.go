// Package registry talks to a schema registry over the Confluent REST API: Confluent's own, Redpanda's,
// Karapace, Apicurio (with the path /apis/ccompat/v7 in the URL).
//
// The guarantee: Register returns ids only when the present schema of every event reads every version
// that the registry holds, checked here and not left to the registry's settings; and an id means one
// schema forever, so what was fetched once is never asked for again. It fails to hold when a registry is
// emptied and numbers its schemas anew while topics still carry the old ids.
package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/sr"
	"golang.org/x/sync/singleflight"

	"converge/schemas"
)

// Client asks one registry. It is safe for concurrent use.
type Client struct {
	url    string // without credentials
	sr     *sr.Client
	log    *slog.Logger
	flight singleflight.Group
	texts  sync.Map // int → string; bounded by what the registry holds
}

// requestTimeout bounds one request. A registry on the same network answers in milliseconds.
const requestTimeout = 5 * time.Second

// New returns a client of the registry at the URL, as http://user:password@host:8081/path. A bare
// host:port means http. It does not connect.
func New(address string, log *slog.Logger) (*Client, error) {
	if !strings.Contains(address, "://") {
		address = "http://" + address
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, errors.New("a schema registry's address is http://HOST:PORT, with a path where it needs one")
	}
	opts := []sr.ClientOpt{sr.HTTPClient(&http.Client{Timeout: requestTimeout}), sr.UserAgent("converge")}
	if u.User != nil {
		password, _ := u.User.Password()
		opts = append(opts, sr.BasicAuth(u.User.Username(), password))
		u.User = nil // so that no error or log line carries it
	}
	client, err := sr.NewClient(append(opts, sr.URLs(u.String()))...)
	if err != nil {
		return nil, fmt.Errorf("making a schema registry client: %w", err)
	}
	return &Client{url: u.String(), sr: client, log: log}, nil
}

// Schema returns the text of the schema with the id. Concurrent calls for one id make one request;
// a schema that was found is kept. It blocks for at most five seconds and does not retry: its errors
// are [*UnknownSchemaError], which is permanent, and otherwise [*UnavailableError] or [*RefusedError],
// which are the infrastructure's.
func (c *Client) Schema(ctx context.Context, id int) (string, error) {
	for {
		if text, ok := c.texts.Load(id); ok {
			return text.(string), nil
		}
		text, err, _ := c.flight.Do(fmt.Sprint(id), func() (any, error) {
			// A flight may have landed between the look above and the start of this one.
			if text, ok := c.texts.Load(id); ok {
				return text, nil
			}
			s, err := c.sr.SchemaByID(ctx, id)
			if hasCode(err, sr.ErrSchemaNotFound.Code) {
				return "", &UnknownSchemaError{ID: id}
			}
			if err != nil {
				return "", c.classify(err)
			}
			c.texts.Store(id, s.Schema)
			return s.Schema, nil
		})
		// Whose context ended? When it was another caller's, who happened to make the request, ask again.
		if errors.Is(err, context.Canceled) && ctx.Err() == nil {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("fetching schema %d: %w", id, err)
		}
		return text.(string), nil
	}
}

// Register puts the present schemas of the event types, of all when none are named, under their subjects
// and returns their ids, ready for a codec. It waits while the registry is away, until ctx ends; it says
// so once. It returns [*IncompatibleError] when a version in the registry could no longer be read, and
// then has changed nothing for that subject; [*RefusedError] when the registry will not have it.
// Registering what is there already changes nothing.
func (c *Client) Register(ctx context.Context, eventTypes ...string) (schemas.IDs, error) {
	wanted := map[string]bool{}
	for _, t := range eventTypes {
		wanted[t] = true
	}
	ids := schemas.IDs{Types: map[string]int{}, Schema: c.Schema}
	for _, subject := range schemas.Subjects() {
		if len(wanted) > 0 && !wanted[subject.EventType] {
			continue
		}
		id, err := c.registerPatiently(ctx, subject)
		if err != nil {
			return schemas.IDs{}, fmt.Errorf("registering %s: %w", subject.Name, err)
		}
		ids.Types[subject.EventType] = id
	}
	return ids, nil
}

const (
	firstWait = 100 * time.Millisecond
	longWait  = 3 * time.Second
)

func (c *Client) registerPatiently(ctx context.Context, subject schemas.Subject) (int, error) {
	for wait := firstWait; ; wait = min(2*wait, longWait) {
		id, err := c.register(ctx, subject)
		var away *UnavailableError
		if err == nil && wait > firstWait {
			c.log.Info("schema registry answers again", "url", c.url)
		}
		if !errors.As(err, &away) || ctx.Err() != nil {
			return id, err
		}
		if wait == firstWait {
			c.log.Warn("schema registry is away; waiting for it", "url", c.url, "error", err)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return 0, err
		case <-timer.C:
		}
	}
}

// register checks first and writes after. Between the two another process may register a version; that
// one was held by its own process against the same history, and the subject's level, set by whoever came
// first, makes the registry refuse what does not fit.
func (c *Client) register(ctx context.Context, subject schemas.Subject) (int, error) {
	held, err := c.sr.Schemas(ctx, subject.Name)
	if err != nil && !hasCode(err, sr.ErrSubjectNotFound.Code) {
		return 0, c.classify(err)
	}
	for _, version := range held {
		if err := schemas.Compatible(subject.Schema, version.Schema.Schema); err != nil {
			return 0, &IncompatibleError{Subject: subject.Name, Version: version.Version, Err: err}
		}
	}
	id, err := c.sr.RegisterSchema(ctx, subject.Name, sr.Schema{Schema: subject.Schema, Type: sr.TypeAvro}, -1, -1)
	var refused *sr.ResponseError
	if errors.As(err, &refused) && refused.StatusCode == http.StatusConflict {
		return 0, &IncompatibleError{Subject: subject.Name, Err: err}
	}
	if err != nil {
		return 0, c.classify(err)
	}
	return id, c.guard(ctx, subject.Name)
}

// guard makes the registry itself refuse versions that would break readers. A subject that already has
// this level or the stricter one is left alone.
func (c *Client) guard(ctx context.Context, subject string) error {
	result := c.sr.Compatibility(ctx, subject)[0]
	if result.Err == nil && (result.Level == sr.CompatBackwardTransitive || result.Level == sr.CompatFullTransitive) {
		return nil
	}
	err := c.sr.SetCompatibility(ctx, sr.SetCompatibility{Level: sr.CompatBackwardTransitive}, subject)[0].Err
	if err == nil {
		return nil
	}
	err = c.classify(err)
	var refused *RefusedError
	if errors.As(err, &refused) {
		// Many registries let only administrators set it. The check above protects these schemas all the same.
		c.log.Warn("schema registry does not let the compatibility level be set", "subject", subject, "error", err)
		return nil
	}
	return err
}
