package schemas_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"

	"converge/schemas"
)

var released = regexp.MustCompile(`^(\w+)\.v([1-9][0-9]*)\.avsc$`)

// judge holds the present schemas against every version that was ever released. It returns what is
// wrong, in words.
func judge(present, history fs.FS) ([]string, error) {
	files, err := fs.Glob(history, "*")
	if err != nil {
		return nil, err
	}
	versions := map[string]map[int]string{}
	var wrong []string
	for _, file := range files {
		m := released.FindStringSubmatch(file)
		if m == nil {
			wrong = append(wrong, file+": history/ holds TYPE.vN.avsc and nothing else")
			continue
		}
		text, err := fs.ReadFile(history, file)
		if err != nil {
			return nil, err
		}
		if versions[m[1]] == nil {
			versions[m[1]] = map[int]string{}
		}
		n, err := strconv.Atoi(m[2])
		if err != nil {
			return nil, err
		}
		versions[m[1]][n] = string(text)
	}
	current, err := fs.Glob(present, "*.avsc")
	if err != nil {
		return nil, err
	}
	for _, file := range current {
		text, err := fs.ReadFile(present, file)
		if err != nil {
			return nil, err
		}
		eventType := strings.TrimSuffix(file, ".avsc")
		wrong = append(wrong, judgeType(eventType, string(text), versions[eventType])...)
		delete(versions, eventType)
	}
	for _, eventType := range slices.Sorted(maps.Keys(versions)) {
		wrong = append(wrong, eventType+": it was released, so its schema stays: topics still hold such events")
	}
	return wrong, nil
}

func judgeType(eventType, present string, versions map[int]string) []string {
	var wrong []string
	for _, n := range slices.Sorted(maps.Keys(versions)) {
		if err := schemas.Compatible(present, versions[n]); err != nil {
			wrong = append(wrong, fmt.Sprintf("%s: the present schema cannot read what v%d wrote: %v", eventType, n, err))
		}
		if n > len(versions) {
			wrong = append(wrong, fmt.Sprintf("%s: there is a v%d and a number below it is missing", eventType, n))
		}
	}
	if !sameJSON(present, versions[len(versions)]) {
		wrong = append(wrong, fmt.Sprintf("%s: the present schema is not in history/: keep what was released and add %s.v%d.avsc", eventType, eventType, len(versions)+1))
	}
	return wrong
}

func sameJSON(a, b string) bool {
	var x, y bytes.Buffer
	return errors.Join(json.Compact(&x, []byte(a)), json.Compact(&y, []byte(b))) == nil && bytes.Equal(x.Bytes(), y.Bytes())
}

func TestPresentSchemasReadEveryVersionEverReleased(t *testing.T) {
	wrong, err := judge(os.DirFS("."), os.DirFS("history"))
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range wrong {
		t.Error(w)
	}
}

// The judgement is worth what it catches.
func TestPlantedIncompatibleChangesAreReported(t *testing.T) {
	const v1 = `{"type":"record","name":"E","namespace":"n","fields":[{"name":"a","type":"string"}]}`
	record := func(fields string) string {
		return `{"type":"record","name":"E","namespace":"n","fields":[` + fields + `]}`
	}
	for _, c := range []struct {
		name, present string
		history       map[string]string
		wanted        string // "" is fine
	}{
		{"unchanged", v1, map[string]string{"E.v1.avsc": v1}, ""},
		{"a field with a default comes", record(`{"name":"a","type":"string"},{"name":"b","type":"long","default":0}`),
			map[string]string{"E.v1.avsc": v1, "E.v2.avsc": record(`{"name":"a","type":"string"},{"name":"b","type":"long","default":0}`)}, ""},
		{"a field goes", record(``), map[string]string{"E.v1.avsc": v1, "E.v2.avsc": record(``)}, ""},
		{"a field without a default comes", record(`{"name":"a","type":"string"},{"name":"b","type":"long"}`),
			map[string]string{"E.v1.avsc": v1, "E.v2.avsc": record(`{"name":"a","type":"string"},{"name":"b","type":"long"}`)}, "cannot read what v1 wrote"},
		{"a type changes", record(`{"name":"a","type":"long"}`),
			map[string]string{"E.v1.avsc": v1, "E.v2.avsc": record(`{"name":"a","type":"long"}`)}, "cannot read what v1 wrote"},
		{"only the last version is read", record(`{"name":"c","type":"string"}`),
			map[string]string{"E.v1.avsc": v1, "E.v2.avsc": record(`{"name":"c","type":"string","default":""}`), "E.v3.avsc": record(`{"name":"c","type":"string"}`)}, "cannot read what v1 wrote"},
		{"the record is renamed", `{"type":"record","name":"F","fields":[{"name":"a","type":"string"}]}`, map[string]string{"E.v1.avsc": v1}, "cannot read what v1 wrote"},
		{"a change is not recorded", record(`{"name":"a","type":"string"},{"name":"b","type":"long","default":0}`), map[string]string{"E.v1.avsc": v1}, "add E.v2.avsc"},
		{"nothing is recorded", v1, nil, "add E.v1.avsc"},
		{"history is rewritten", v1, map[string]string{"E.v2.avsc": v1}, "missing"},
		{"a type is dropped", v1, map[string]string{"E.v1.avsc": v1, "Gone.v1.avsc": v1}, "its schema stays"},
	} {
		t.Run(c.name, func(t *testing.T) {
			history := fstest.MapFS{}
			for name, text := range c.history {
				history[name] = &fstest.MapFile{Data: []byte(text)}
			}
			wrong, err := judge(fstest.MapFS{"E.avsc": {Data: []byte(c.present)}}, history)
			if err != nil {
				t.Fatal(err)
			}
			if c.wanted == "" && len(wrong) > 0 {
				t.Errorf("a compatible change was reported: %q", wrong)
			}
			if c.wanted != "" && !slices.ContainsFunc(wrong, func(w string) bool { return strings.Contains(w, c.wanted) }) {
				t.Errorf("got %q, want a report of %q", wrong, c.wanted)
			}
		})
	}
}
