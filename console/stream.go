package console

import (
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// hub hands the latest snapshot to every open page. A page that is slow to read skips snapshots; none
// waits for it and nothing queues up.
type hub struct {
	mu      sync.Mutex
	frame   *frame
	changed chan struct{} // closed when frame is replaced
	streams int

	done chan struct{} // closed when nothing more will come
	once sync.Once
}

// frame is one snapshot with its two encodings, each made at most once and only when somebody looks.
type frame struct {
	snapshot *Snapshot
	flow     func() []byte
	full     func() []byte
}

func newHub() *hub { return &hub{changed: make(chan struct{}), done: make(chan struct{})} }

func (h *hub) publish(s *Snapshot) {
	encoded := func(s func() *Snapshot) func() []byte {
		return sync.OnceValue(func() []byte {
			// Nothing in a snapshot can refuse to be encoded: no maps of interfaces, no NaN.
			b, err := json.Marshal(s())
			if err != nil {
				return []byte("null")
			}
			return b
		})
	}
	f := &frame{snapshot: s, flow: encoded(s.withoutPartitions), full: encoded(func() *Snapshot { return s })}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.frame = f
	close(h.changed)
	h.changed = make(chan struct{})
}

// latest returns the newest frame and a channel that is closed when there is a newer one.
func (h *hub) latest() (*frame, <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.frame, h.changed
}

func (h *hub) close() { h.once.Do(func() { close(h.done) }) }

// maxStreams bounds open pages.
const maxStreams = 64

func (h *hub) enter() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.streams >= maxStreams {
		return false
	}
	h.streams++
	return true
}

func (h *hub) leave() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.streams--
}

// streamWrite bounds one write to a page: a browser that stopped reading is let go.
const streamWrite = 10 * time.Second

// stream serves /console/stream: an event "snapshot" a second, and "bye" when the console stops. With
// ?partitions=1 the snapshots hold the partitions of every group.
func (c *Console) stream(w http.ResponseWriter, r *http.Request) {
	select {
	case <-c.hub.done:
		problem(w, http.StatusServiceUnavailable, "the console is shutting down")
		return
	default:
	}
	if !c.hub.enter() {
		problem(w, http.StatusServiceUnavailable, "too many open pages")
		return
	}
	defer c.hub.leave()
	full := r.URL.Query().Get("partitions") == "1"
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no")
	control := http.NewResponseController(w)
	send := func(event string, data []byte) bool {
		// Not every writer has deadlines; the server's own then apply.
		_ = control.SetWriteDeadline(time.Now().Add(streamWrite))
		if _, err := fmt.Fprintf(w, "event: %s\ndata: %s\n\n", event, data); err != nil {
			return false
		}
		return control.Flush() == nil
	}
	if _, err := fmt.Fprint(w, "retry: 1000\n\n"); err != nil {
		return
	}
	for {
		f, changed := c.hub.latest()
		data := f.flow
		if full {
			data = f.full
		}
		if !send("snapshot", data()) {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-c.hub.done:
			send("bye", []byte("{}"))
			return
		case <-changed:
		}
	}
}
