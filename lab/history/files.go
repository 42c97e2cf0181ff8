package history

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

const planFile = "plan.json"

// parts lists the JSON lines files of a history.
func (h *History) parts() map[string]part {
	return map[string]part{
		"writes.jsonl":       lines[Write]{&h.Writes},
		"records.jsonl":      lines[Record]{&h.Records},
		"effects.jsonl":      lines[Effect]{&h.Effects},
		"views.jsonl":        lines[View]{&h.Views},
		"faults.jsonl":       lines[Fault]{&h.Faults},
		"dead_letters.jsonl": lines[DeadLetter]{&h.DeadLetters},
		"sources.jsonl":      lines[Source]{&h.Sources},
	}
}

type part interface {
	write(io.Writer) error
	read(io.Reader) error
}

type lines[T any] struct{ rows *[]T }

func (l lines[T]) write(w io.Writer) error {
	enc := json.NewEncoder(w)
	for i := range *l.rows {
		if err := enc.Encode(&(*l.rows)[i]); err != nil {
			return err
		}
	}
	return nil
}

func (l lines[T]) read(r io.Reader) error {
	dec := json.NewDecoder(r)
	for n := 1; ; n++ {
		var row T
		if err := dec.Decode(&row); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("row %d: %w", n, err)
		}
		*l.rows = append(*l.rows, row)
	}
}

// Save writes the history into dir, which it makes: plan.json and one JSON lines file per kind of row.
func (h *History) Save(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("making the report directory: %w", err)
	}
	plan, err := json.MarshalIndent(h.Plan, "", "  ")
	if err != nil {
		return fmt.Errorf("writing %s: %w", planFile, err)
	}
	if err := os.WriteFile(filepath.Join(dir, planFile), append(plan, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing %s: %w", planFile, err)
	}
	for name, p := range h.parts() {
		if err := savePart(filepath.Join(dir, name), p); err != nil {
			return fmt.Errorf("writing %s: %w", name, err)
		}
	}
	return nil
}

func savePart(path string, p part) (err error) {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	buffered := bufio.NewWriter(file)
	if err := p.write(buffered); err != nil {
		return err
	}
	return buffered.Flush()
}

// Load reads the history that [History.Save] wrote into dir.
func Load(dir string) (*History, error) {
	h := &History{}
	plan, err := os.ReadFile(filepath.Join(dir, planFile))
	if err != nil {
		return nil, fmt.Errorf("reading a history: %w", err)
	}
	if err := json.Unmarshal(plan, &h.Plan); err != nil {
		return nil, fmt.Errorf("reading %s: %w", planFile, err)
	}
	for name, p := range h.parts() {
		if err := loadPart(filepath.Join(dir, name), p); err != nil {
			return nil, fmt.Errorf("reading %s: %w", name, err)
		}
	}
	return h, nil
}

func loadPart(path string, p part) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	return p.read(bufio.NewReader(file))
}
