package schemas_test

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"converge/schemas"
)

func TestEverySchemaHasARouteAndAGoType(t *testing.T) {
	files, err := filepath.Glob("*.avsc")
	if err != nil {
		t.Fatal(err)
	}
	routed := map[string]bool{}
	for _, r := range schemas.Routes() {
		if routed[r.Type] {
			t.Errorf("%s has two routes", r.Type)
		}
		routed[r.Type] = true
		if schemas.New(r.Type) == nil {
			t.Errorf("%s has a route and no Go type", r.Type)
		}
	}
	described := map[string]bool{}
	for _, file := range files {
		eventType := strings.TrimSuffix(file, ".avsc")
		described[eventType] = true
		if !routed[eventType] {
			t.Errorf("%s has no route", file)
		}
	}
	for _, eventType := range slices.Sorted(maps.Keys(routed)) {
		if !described[eventType] {
			t.Errorf("%s has a route and no schema", eventType)
		}
	}
}

func TestSchemasSayWhatTheyAre(t *testing.T) {
	for _, r := range schemas.Routes() {
		var s struct {
			Name, Namespace, Doc string
			Fields               []struct{ Name, Doc string }
		}
		if err := json.Unmarshal([]byte(schemas.Text(r.Type)), &s); err != nil {
			t.Errorf("%s: %v", r.Type, err)
			continue
		}
		if s.Name != r.Type || s.Namespace != "converge."+r.Topic || s.Doc == "" {
			t.Errorf("%s: record %s in %s, doc %q: the record is named after the type, its namespace after the topic", r.Type, s.Name, s.Namespace, s.Doc)
		}
		goType := reflect.TypeOf(schemas.New(r.Type)).Elem()
		if goType.Name() != r.Type || goType.NumField() != len(s.Fields) {
			t.Errorf("%s: the Go type %s has %d fields, the schema %d", r.Type, goType, goType.NumField(), len(s.Fields))
		}
		for i, f := range s.Fields {
			if f.Doc == "" {
				t.Errorf("%s: field %s has no doc", r.Type, f.Name)
			}
			if tag := goType.Field(i).Tag; tag.Get("avro") != f.Name || tag.Get("json") != f.Name {
				t.Errorf("%s: field %d is %s in the schema and has the tags %s", r.Type, i, f.Name, tag)
			}
		}
	}
}

func TestSubjectsAreTopicAndRecordName(t *testing.T) {
	for _, s := range schemas.Subjects() {
		topic := schemas.TopicOf(s.EventType)
		if want := topic + "-converge." + topic + "." + s.EventType; s.Name != want {
			t.Errorf("subject %s, want %s", s.Name, want)
		}
		text, err := os.ReadFile(s.EventType + ".avsc")
		if err != nil || string(text) != s.Schema {
			t.Errorf("%s: the embedded schema is not the file's (%v)", s.EventType, err)
		}
	}
}
