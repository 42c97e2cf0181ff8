package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/google/uuid"

	"converge/internal/opshttp"
)

const (
	// heartbeat is how long a stream may be silent.
	heartbeat = 15 * time.Second
	// writeTime bounds how long a client may leave what it is sent unread.
	writeTime = 10 * time.Second
)

// events answers with a stream of the statuses (HTML, section 9.2, server-sent events): one for each version
// after Last-Event-ID, also for those that were entered together or long ago, up to the terminal one. A client
// whose stream ended otherwise comes back with the id of the last event that it got, and misses none.
func (f *follower) events(w http.ResponseWriter, r *http.Request) error {
	id, found, err := f.lookup(r)
	if err != nil {
		return err
	}
	w.Header().Set("Cache-Control", "no-cache")
	sent := lastEventID(r)
	now := found.Now()
	switch {
	case now.Terminal() && sent >= now.Version:
		w.WriteHeader(http.StatusNoContent) // which tells an EventSource to stay away
		return nil
	case sent > now.Version:
		sent = 0 // nobody has sent it
	}
	if r.Method != http.MethodHead && !now.Terminal() {
		leave, err := f.api.wait(r)
		if err != nil {
			return err
		}
		defer leave()
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no")
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return nil
	}
	s := &stream{w: w, control: http.NewResponseController(w)}
	defer s.close()
	if s.flush() == nil {
		f.follow(r, s, id, found, sent)
	}
	return nil // the answer has begun: whatever went wrong ended it
}

// lastEventID returns the version that the client has, 0 when it names none.
func lastEventID(r *http.Request) int64 {
	version, err := strconv.ParseInt(r.Header.Get("Last-Event-ID"), 10, 64)
	if err != nil || version < 0 {
		return 0
	}
	return version
}

// follow sends what comes after the version sent until the terminal one, the client's leaving, or trouble.
func (f *follower) follow(r *http.Request, s *stream, id uuid.UUID, found *Followed, sent int64) {
	ctx := r.Context()
	draining := opshttp.Draining(ctx)
	for {
		for _, status := range found.Past[sent:] {
			if s.event(status) != nil {
				return
			}
			sent = status.Version
		}
		if found.Now().Terminal() {
			return
		}
		err := f.awaitBeating(ctx, draining, s, id.String(), sent)
		if err == nil {
			found, err = f.find(ctx, id)
		}
		switch {
		case err == nil:
			continue
		case ctx.Err() != nil, errors.Is(err, errUnread):
		case errors.Is(err, errDraining):
			_ = s.end("this server stops: come back")
		default:
			f.api.cfg.Logger.Warn("stream ends for trouble", "request_id", requestID(ctx), "error", err)
			_ = s.end("something is away: come back")
		}
		return
	}
}

// errUnread says that the client does not take what it is sent.
var errUnread = errors.New("the client does not read")

// awaitBeating waits for a version above the one given, and keeps the connection from looking dead meanwhile.
func (f *follower) awaitBeating(ctx context.Context, draining <-chan struct{}, s *stream, id string, sent int64) error {
	for {
		quiet, cancel := context.WithTimeout(ctx, heartbeat)
		err := f.watch.changed(quiet, draining, id, sent)
		silent := quiet.Err() != nil
		cancel()
		if ctx.Err() != nil || !silent || !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		if s.comment("still here") != nil {
			return errUnread
		}
	}
}

// stream writes events, and sees to it that each is on its way.
type stream struct {
	w       http.ResponseWriter
	control *http.ResponseController
}

func (s *stream) event(status Status) error {
	data, err := json.Marshal(status)
	if err != nil {
		return fmt.Errorf("writing a status: %w", err)
	}
	return s.write(fmt.Sprintf("event: status\nid: %d\ndata: %s\n\n", status.Version, data))
}

func (s *stream) comment(text string) error { return s.write(": " + text + "\n\n") }

// end tells the client why the stream ends before the resource does, and to come back in a second.
func (s *stream) end(why string) error { return s.write(": " + why + "\nretry: 1000\n\n") }

func (s *stream) write(text string) error {
	_ = s.control.SetWriteDeadline(time.Now().Add(writeTime)) // a writer without a connection has none
	if _, err := s.w.Write([]byte(text)); err != nil {
		return err
	}
	return s.flush()
}

func (s *stream) flush() error { return s.control.Flush() }

// close takes the deadline back, for the next request on the connection.
func (s *stream) close() { _ = s.control.SetWriteDeadline(time.Time{}) }
