package schemas_test

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"converge/consumers/event"
	"converge/producers/outbox"
	"converge/schemas"
)

var (
	_ outbox.Encoder = (*schemas.Codec)(nil)
	_ event.Decoder  = (*schemas.Codec)(nil)
)

// away is a registry that does not answer.
type away struct{}

func (away) Error() string        { return "connection refused" }
func (away) Infrastructure() bool { return true }

// unknown is a registry's word that an id does not exist.
type unknown struct{}

func (unknown) Error() string   { return "no such schema" }
func (unknown) Permanent() bool { return true }

// testIDs gives every type an id from 1 on, and knows the extra schemas besides.
func testIDs(extra map[int]string) schemas.IDs {
	texts := map[int]string{}
	ids := schemas.IDs{Types: map[string]int{}}
	for i, s := range schemas.Subjects() {
		ids.Types[s.EventType] = i + 1
		texts[i+1] = s.Schema
	}
	for id, text := range extra {
		texts[id] = text
	}
	ids.Schema = func(_ context.Context, id int) (string, error) {
		if text, ok := texts[id]; ok {
			return text, nil
		}
		return "", unknown{}
	}
	return ids
}

// fill draws a value of an event's Go type.
func fill(t *rapid.T, v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(rapid.String().Draw(t, "string"))
	case reflect.Int, reflect.Int64:
		v.SetInt(rapid.Int64().Draw(t, "integer"))
	case reflect.Bool:
		v.SetBool(rapid.Bool().Draw(t, "bool"))
	case reflect.Slice:
		n := rapid.IntRange(0, 250).Draw(t, "length") // beyond one Avro block
		v.Set(reflect.MakeSlice(v.Type(), n, n))
		for i := range n {
			fill(t, v.Index(i))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i))
		}
	default:
		t.Fatalf("an event holds a %s: teach this test to draw one", v.Kind())
	}
}

func TestWhatIsEncodedIsDecodedToTheSame(t *testing.T) {
	for _, format := range []schemas.Format{schemas.Avro, schemas.JSON} {
		codec := schemas.NewCodec(format, testIDs(nil))
		for _, route := range schemas.Routes() {
			t.Run(fmt.Sprintf("%s %s", format, route.Type), rapid.MakeCheck(func(t *rapid.T) {
				data := schemas.New(route.Type)
				fill(t, reflect.ValueOf(data).Elem())
				topic, contentType, value, err := codec.Encode(route.Type, data)
				if err != nil {
					t.Fatal(err)
				}
				if topic != route.Topic {
					t.Fatalf("topic %q, want %q", topic, route.Topic)
				}
				for _, said := range []string{contentType, "", "application/octet-stream"} {
					got := schemas.New(route.Type)
					if err := codec.Decode(t.Context(), route.Type, said, value, got); err != nil {
						t.Fatal(err)
					}
					if diff := cmp.Diff(data, got); diff != "" {
						t.Fatalf("content type %q (-encoded +decoded):\n%s", said, diff)
					}
				}
			}))
		}
	}
}

func TestAvroIsTheConfluentWireFormat(t *testing.T) {
	ids := testIDs(nil)
	ids.Types["ShipmentArranged"] = 0x01020304
	_, contentType, value, err := schemas.NewCodec(schemas.Avro, ids).Encode("ShipmentArranged", schemas.ShipmentArranged{OrderID: "o", ShipmentID: "s1"})
	if err != nil {
		t.Fatal(err)
	}
	// Zero byte, id, then two strings: length in zigzag, bytes (Avro 1.11, binary encoding).
	if got, want := hex.EncodeToString(value), "00"+"01020304"+"026f"+"047331"; got != want || contentType != "application/avro" {
		t.Errorf("got %s as %s, want %s", got, contentType, want)
	}
}

func TestOldAndNewWritersAreRead(t *testing.T) {
	const (
		fewer  = `{"type":"record","name":"ProfileUpdated","namespace":"converge.identity","fields":[{"name":"user_id","type":"string"},{"name":"version","type":"int"},{"name":"email","type":"string"},{"name":"display_name","type":"string"}]}`
		more   = `{"type":"record","name":"ProfileUpdated","namespace":"converge.identity","fields":[{"name":"phones","type":{"type":"array","items":"string"}},{"name":"user_id","type":"string"},{"name":"version","type":"long"},{"name":"email","type":"string"},{"name":"nick","type":["null","string"]},{"name":"display_name","type":"string"},{"name":"marketing_opt_in","type":"boolean"}]}`
		reader = "ProfileUpdated"
	)
	codec := schemas.NewCodec(schemas.Avro, testIDs(map[int]string{100: fewer, 101: more}))
	text := func(s string) []byte { return append(binary.AppendVarint(nil, int64(len(s))), s...) }
	var old, newer []byte
	old = append(old, 0, 0, 0, 0, 100)
	old = append(append(append(append(old, text("u1")...), binary.AppendVarint(nil, 7)...), text("a@b")...), text("Ann")...)
	newer = append(newer, 0, 0, 0, 0, 101)
	newer = append(append(append(newer, binary.AppendVarint(nil, 2)...), text("1")...), text("2")...)
	newer = append(append(append(append(newer, 0), text("u1")...), binary.AppendVarint(nil, 7)...), text("a@b")...)
	newer = append(append(append(append(newer, 2), text("annie")...), text("Ann")...), 1)

	for name, c := range map[string]struct {
		value []byte
		want  schemas.ProfileUpdated
	}{
		"older": {old, schemas.ProfileUpdated{UserID: "u1", Version: 7, Email: "a@b", DisplayName: "Ann"}},
		"newer": {newer, schemas.ProfileUpdated{UserID: "u1", Version: 7, Email: "a@b", DisplayName: "Ann", MarketingOptIn: true}},
	} {
		var got schemas.ProfileUpdated
		if err := codec.Decode(t.Context(), reader, "", c.value, &got); err != nil {
			t.Errorf("%s: %v", name, err)
		} else if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestJSONMayLeaveOutWhatHasADefaultAndSayMore(t *testing.T) {
	codec := schemas.NewCodec(schemas.JSON, schemas.IDs{})
	var got schemas.ProfileUpdated
	err := codec.Decode(t.Context(), "ProfileUpdated", "application/json; charset=utf-8",
		[]byte(` {"user_id":"u1","event_id":"x","version":9007199254740993,"nested":{"a":[1,2,{}]},"email":"a@b","display_name":"Ann"} `), &got)
	if err != nil {
		t.Fatal(err)
	}
	want := schemas.ProfileUpdated{UserID: "u1", Version: 9007199254740993, Email: "a@b", DisplayName: "Ann"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestAConsumerMayWantFewerFields(t *testing.T) {
	codec := schemas.NewCodec(schemas.Avro, testIDs(nil))
	_, contentType, value, err := codec.Encode("OrderPlaced", &schemas.OrderPlaced{OrderID: "o1", Items: []schemas.Line{{SKU: "a", Quantity: 2}}, TotalAmount: 5, Currency: "EUR"})
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Currency string `avro:"currency" json:"currency"`
	}
	if err := codec.Decode(t.Context(), "OrderPlaced", contentType, value, &got); err != nil || got.Currency != "EUR" {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestBadValuesArePermanentErrors(t *testing.T) {
	const profile = `{"user_id":"u1","version":1,"email":"a@b","display_name":"Ann"`
	codec := schemas.NewCodec(schemas.Avro, testIDs(nil))
	_, _, good, err := codec.Encode("ProfileUpdated", schemas.ProfileUpdated{UserID: "u1", Version: 1})
	if err != nil {
		t.Fatal(err)
	}
	_, _, other, err := codec.Encode("OrderCancelled", schemas.OrderCancelled{OrderID: "o1"})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ eventType, contentType, value, says string }{
		"no value":               {"ProfileUpdated", "", "", "no value"},
		"unknown type":           {"Nothing", "application/json", `{}`, "no schema describes"},
		"rubbish":                {"ProfileUpdated", "", "rubbish", "not JSON"},
		"missing field":          {"ProfileUpdated", "", `{"user_id":"u1"}`, "field version is missing"},
		"string for long":        {"ProfileUpdated", "", strings.Replace(profile, `1,`, `"1",`, 1) + `}`, "/version"},
		"fraction for long":      {"ProfileUpdated", "", strings.Replace(profile, `1,`, `1.5,`, 1) + `}`, "/version"},
		"exponent for long":      {"ProfileUpdated", "", strings.Replace(profile, `1,`, `1e3,`, 1) + `}`, "/version"},
		"long too large":         {"ProfileUpdated", "", strings.Replace(profile, `1,`, `9223372036854775808,`, 1) + `}`, "64 bits"},
		"null for string":        {"ProfileUpdated", "", profile + `,"address":null}`, "/address: a string is wanted, not null"},
		"other case":             {"ProfileUpdated", "", strings.Replace(profile, `email`, `Email`, 1) + `}`, "field email is missing"},
		"twice the same name":    {"ProfileUpdated", "", profile + `,"email":"c@d"}`, "not JSON"},
		"truncated JSON":         {"ProfileUpdated", "", profile, "too early"},
		"two JSON values":        {"ProfileUpdated", "", profile + `} {}`, "after its end"},
		"not UTF-8":              {"ProfileUpdated", "", strings.Replace(profile, `Ann`, "\xff", 1) + `}`, "not JSON"},
		"array":                  {"ProfileUpdated", "", `[]`, "a record is wanted"},
		"number in items":        {"OrderPlaced", "", `{"items":[{"sku":5}]}`, "/items/0/sku"},
		"content type":           {"ProfileUpdated", "text/plain", profile + `}`, "neither Avro nor JSON"},
		"content type, broken":   {"ProfileUpdated", "a/b/c", profile + `}`, "a/b/c"},
		"JSON called Avro":       {"ProfileUpdated", "application/avro", profile + `}`, "zero byte"},
		"Avro called JSON":       {"ProfileUpdated", "application/json", string(good), "not JSON"},
		"unknown schema id":      {"ProfileUpdated", "", "\x00\x00\x00\xff\xff" + string(good[5:]), "no such schema"},
		"another event's schema": {"ProfileUpdated", "", string(other), "names do not match"},
		"truncated Avro":         {"ProfileUpdated", "", string(good[:len(good)-1]), "too early"},
		"Avro and more":          {"ProfileUpdated", "", string(good) + "x", "after its end"},
		"boolean of 2":           {"ProfileUpdated", "", string(good[:len(good)-1]) + "\x02", "boolean"},
	} {
		t.Run(name, func(t *testing.T) {
			into := schemas.New(c.eventType)
			err := codec.Decode(t.Context(), c.eventType, c.contentType, []byte(c.value), into)
			if err == nil {
				t.Fatalf("it was taken for %+v", into)
			}
			if event.Classify(err) != event.ClassPermanent {
				t.Errorf("class %s, want permanent: %v", event.Classify(err), err)
			}
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("%q does not say %q", err, c.says)
			}
		})
	}
}

func TestARegistryThatIsAwayIsInfrastructureAndNotRemembered(t *testing.T) {
	ids := testIDs(nil)
	fetch, broken := ids.Schema, true
	ids.Schema = func(ctx context.Context, id int) (string, error) {
		if broken {
			return "", fmt.Errorf("asking: %w", away{})
		}
		return fetch(ctx, id)
	}
	_, _, value, err := schemas.NewCodec(schemas.Avro, ids).Encode("OrderCancelled", schemas.OrderCancelled{OrderID: "o1"})
	if err != nil {
		t.Fatal(err)
	}
	ids.Types = nil // as in a process that only reads
	codec := schemas.NewCodec(schemas.JSON, ids)
	var got schemas.OrderCancelled
	if err := codec.Decode(t.Context(), "OrderCancelled", "", value, &got); event.Classify(err) != event.ClassInfrastructure {
		t.Errorf("class %s, want infrastructure: %v", event.Classify(err), err)
	}
	broken = false
	if err := codec.Decode(t.Context(), "OrderCancelled", "", value, &got); err != nil || got.OrderID != "o1" {
		t.Errorf("once it is back: %+v, %v", got, err)
	}
	if err := schemas.NewCodec(schemas.JSON, schemas.IDs{}).Decode(t.Context(), "OrderCancelled", "", value, &got); !errors.Is(err, schemas.ErrNoRegistry) {
		t.Errorf("without a registry: %v, want ErrNoRegistry", err)
	}
}

func TestEncodeRefusesWhatNobodyCouldRead(t *testing.T) {
	for _, format := range []schemas.Format{schemas.Avro, schemas.JSON} {
		codec := schemas.NewCodec(format, testIDs(nil))
		for name, c := range map[string]struct {
			eventType string
			data      any
		}{
			"unknown type":  {"Nothing", schemas.OrderCancelled{}},
			"another type":  {"OrderCancelled", schemas.OrderTimedOut{}},
			"nil":           {"OrderCancelled", nil},
			"nil pointer":   {"OrderCancelled", (*schemas.OrderCancelled)(nil)},
			"map":           {"OrderCancelled", map[string]any{"order_id": "o"}},
			"invalid UTF-8": {"OrderCancelled", schemas.OrderCancelled{OrderID: "\xff"}},
		} {
			if _, _, value, err := codec.Encode(c.eventType, c.data); event.Classify(err) != event.ClassPermanent || err == nil {
				t.Errorf("%s, %s: %q, %v", format, name, value, err)
			}
		}
	}
	if _, _, _, err := schemas.NewCodec(schemas.Avro, schemas.IDs{}).Encode("OrderCancelled", schemas.OrderCancelled{}); err == nil {
		t.Error("Avro was written without an id")
	}
}

func TestExtremeNumbersSurvive(t *testing.T) {
	for _, format := range []schemas.Format{schemas.Avro, schemas.JSON} {
		codec := schemas.NewCodec(format, testIDs(nil))
		for _, n := range []int64{math.MinInt64, -1, 0, 1<<53 + 1, math.MaxInt64} {
			_, contentType, value, err := codec.Encode("PaymentAuthorized", schemas.PaymentAuthorized{Amount: n})
			if err != nil {
				t.Fatal(err)
			}
			var got schemas.PaymentAuthorized
			if err := codec.Decode(t.Context(), "PaymentAuthorized", contentType, value, &got); err != nil || got.Amount != n {
				t.Errorf("%s: %d became %d, %v", format, n, got.Amount, err)
			}
		}
	}
}

func TestACodecServesManyAtOnce(t *testing.T) {
	codec := schemas.NewCodec(schemas.Avro, testIDs(nil))
	var group sync.WaitGroup
	for worker := range 8 {
		group.Go(func() {
			for i := range 300 {
				want := schemas.OrderPlaced{OrderID: fmt.Sprint(worker, i), Items: []schemas.Line{{SKU: strings.Repeat("x", i), Quantity: i}}}
				_, _, value, err := codec.Encode("OrderPlaced", &want)
				var got schemas.OrderPlaced
				if err == nil {
					err = codec.Decode(context.Background(), "OrderPlaced", "", value, &got)
				}
				if diff := cmp.Diff(want, got); err != nil || diff != "" {
					t.Errorf("%v (-want +got):\n%s", err, diff)
					return
				}
			}
		})
	}
	group.Wait()
}

func TestInspectTellsAvroFromItsSchemaAlone(t *testing.T) {
	const foreign = `{"type":"record","name":"Foreign","namespace":"other","fields":[{"name":"n","type":"long"}]}`
	codec := schemas.NewCodec(schemas.Avro, testIDs(map[int]string{100: foreign}))
	_, _, value, err := codec.Encode("OrderCancelled", schemas.OrderCancelled{OrderID: "o1"})
	if err != nil {
		t.Fatal(err)
	}
	eventType, data, err := codec.Inspect(t.Context(), "", "", value)
	if err != nil || eventType != "OrderCancelled" || !cmp.Equal(data, &schemas.OrderCancelled{OrderID: "o1"}) {
		t.Errorf("got %s %+v, %v", eventType, data, err)
	}
	eventType, data, err = codec.Inspect(t.Context(), "", "", []byte{0, 0, 0, 0, 100, 84})
	if err != nil || eventType != "Foreign" || !cmp.Equal(data, map[string]any{"n": int64(42)}) {
		t.Errorf("got %s %+v, %v", eventType, data, err)
	}
	eventType, data, err = codec.Inspect(t.Context(), "Foreign", "", []byte(`{"n": 42}`))
	if err != nil || eventType != "Foreign" || fmt.Sprintf("%s", data) != `{"n":42}` {
		t.Errorf("got %s %s, %v", eventType, data, err)
	}
}
