package challenge

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// timeline tells what happens, on the screen and in a file. Its methods are safe for concurrent use.
type timeline struct {
	began time.Time

	mu    sync.Mutex
	out   io.Writer
	file  *os.File
	phase string
	until time.Time
	err   error // of the file, the first one
}

func newTimeline(path string, out io.Writer) (*timeline, error) {
	file, err := os.Create(path)
	if err != nil {
		return nil, fmt.Errorf("making the timeline: %w", err)
	}
	return &timeline{began: time.Now(), out: out, file: file}, nil
}

// say notes that something happens now.
func (t *timeline) say(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now, text := time.Now(), fmt.Sprintf(format, args...)
	fmt.Fprintf(t.out, "%6.1fs  %s\n", now.Sub(t.began).Seconds(), text)
	line, err := json.Marshal(struct {
		At   time.Time `json:"at"`
		What string    `json:"what"`
	}{now.UTC(), text})
	if err == nil {
		_, err = t.file.Write(append(line, '\n'))
	}
	if t.err == nil {
		t.err = err
	}
}

// enter says which phase begins and how long it is planned to take.
func (t *timeline) enter(phase string, planned time.Duration) {
	t.say("%s", phase)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.phase, t.until = phase, time.Now().Add(planned)
}

// progress prints, on the screen only, where the phase stands.
func (t *timeline) progress(counts string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	left := ""
	if d := time.Until(t.until); d > 0 {
		left = fmt.Sprintf("%.0fs left  ", d.Seconds())
	}
	fmt.Fprintf(t.out, "%6.1fs  … %s%s\n", time.Since(t.began).Seconds(), left, counts)
}

func (t *timeline) close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	err := t.file.Close()
	if t.err != nil {
		err = t.err
	}
	if err != nil {
		return fmt.Errorf("writing the timeline: %w", err)
	}
	return nil
}
