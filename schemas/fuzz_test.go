package schemas_test

import (
	"encoding/binary"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"

	"converge/consumers/event"
	"converge/schemas"
)

// everyKind is a writer's schema with every kind of Avro in it, but for a field that is always null, which
// the library refuses: all but one are skipped by the reader.
const everyKind = `{"type":"record","name":"OrderCancelled","namespace":"converge.orders","fields":[
	{"name":"yes","type":"boolean"},
	{"name":"n","type":"int"},
	{"name":"f","type":"float"},
	{"name":"d","type":"double"},
	{"name":"b","type":"bytes"},
	{"name":"e","type":{"type":"enum","name":"E","symbols":["A","B"]}},
	{"name":"x","type":{"type":"fixed","name":"X","size":4}},
	{"name":"m","type":{"type":"map","values":"long"}},
	{"name":"u","type":["null","string","X"]},
	{"name":"ints","type":{"type":"array","items":"int"}},
	{"name":"r","type":{"type":"record","name":"R","fields":[{"name":"again","type":"X"}]}},
	{"name":"order_id","type":"string"}]}`

const everyKindID, recursiveID, nullsID = 1000, 1001, 1002

// recursive has a list in it that no reader here wants.
const recursive = `{"type":"record","name":"OrderCancelled","fields":[
	{"name":"r","type":{"type":"record","name":"Node","fields":[{"name":"next","type":["null","Node"]}]}},
	{"name":"order_id","type":"string"}]}`

// nulls describes arrays that take no bytes however long they are.
const nulls = `{"type":"record","name":"OrderCancelled","fields":[{"name":"n","type":{"type":"array","items":"null"}},{"name":"order_id","type":"string"}]}`

func wire(id int, body ...byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(id)), body...)
}

// everyHead and everyTail are a value of everyKind; the map begins where they meet.
func everyHead() []byte {
	return wire(everyKindID,
		1,          // yes
		2,          // n
		0, 0, 0, 0, // f
		0, 0, 0, 0, 0, 0, 0, 0, // d
		2, 'b', // b
		2,          // e: B
		1, 2, 3, 4, // x
	)
}

var everyTail = []byte{
	2, 2, 'k', 8, 0, // m: one pair
	4, 1, 2, 3, 4, // u: an X
	3, 4, 2, 4, 0, // ints: a block of two in two bytes
	1, 2, 3, 4, // r
	2, 'o',
}

// hostile is what a topic may hold: claims of much in few bytes.
func hostile() [][]byte {
	ids := testIDs(nil).Types
	huge := binary.AppendVarint(nil, 1<<62)
	negative := binary.AppendVarint(nil, -1<<63)
	order := wire(ids["OrderPlaced"], 2, 'o', 2, 'c')
	everything := everyHead()
	return [][]byte{
		append(order, huge...),
		append(order, negative...),
		append(order, append(negative, huge...)...),
		append(wire(ids["OrderCancelled"]), huge...),
		append(everything, huge...),
		append(append(everything, 0, 0), huge...),
		append(append(everything, 0, 0), append(negative, 0)...),
		append(everything, everyTail...),
		wire(recursiveID, 2, 2, 0, 2, 'o'),
		append(wire(nullsID), append(huge, 0, 2, 'o')...),
	}
}

// bounded runs do and fails when it allocates out of proportion to the n bytes that it was given.
func bounded(t *testing.T, n int, do func()) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	do()
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 2<<20+256*uint64(n) {
		t.Errorf("%d bytes of input made %d bytes of garbage", n, used)
	}
}

func TestEveryKindOfAvroIsSkippedWhereTheReaderDoesNotWantIt(t *testing.T) {
	codec := schemas.NewCodec(schemas.Avro, testIDs(map[int]string{everyKindID: everyKind}))
	var got schemas.OrderCancelled
	if err := codec.Decode(t.Context(), "OrderCancelled", "", append(everyHead(), everyTail...), &got); err != nil || got.OrderID != "o" {
		t.Errorf("got %+v, %v", got, err)
	}
}

func FuzzDecodeSurvivesAnyInput(f *testing.F) {
	codec := schemas.NewCodec(schemas.Avro, testIDs(map[int]string{everyKindID: everyKind, recursiveID: recursive, nullsID: nulls}))
	text := schemas.NewCodec(schemas.JSON, schemas.IDs{})
	routes := schemas.Routes()
	for i, r := range routes {
		data := schemas.New(r.Type)
		if o, ok := data.(*schemas.OrderPlaced); ok {
			o.Items = []schemas.Line{{SKU: "a", Quantity: 1}, {SKU: "b", Quantity: 2}}
		}
		for _, c := range []*schemas.Codec{codec, text} {
			_, _, value, err := c.Encode(r.Type, data)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(i, "", value)
		}
	}
	for _, value := range hostile() {
		f.Add(0, "application/avro", value)
		f.Add(1, "", value)
	}
	f.Add(0, "application/json", []byte(`{"items":[[[[[[[[`))
	f.Fuzz(func(t *testing.T, route int, contentType string, value []byte) {
		eventType := routes[uint(route)%uint(len(routes))].Type
		data := schemas.New(eventType)
		bounded(t, len(value), func() {
			if _, _, err := codec.Inspect(t.Context(), "", contentType, value); err != nil && event.Classify(err) != event.ClassPermanent {
				t.Errorf("class %s: %v", event.Classify(err), err)
			}
			err := codec.Decode(t.Context(), eventType, contentType, value, data)
			if err != nil {
				if event.Classify(err) != event.ClassPermanent {
					t.Errorf("class %s: %v", event.Classify(err), err)
				}
				data = nil
			}
		})
		if data == nil {
			return
		}
		// What was taken can be written, and is the same again.
		_, _, again, err := codec.Encode(eventType, data)
		if err != nil {
			t.Fatalf("%+v was read and cannot be written: %v", data, err)
		}
		second := schemas.New(eventType)
		if err := codec.Decode(t.Context(), eventType, "", again, second); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(data, second); diff != "" {
			t.Errorf("(-first +second):\n%s", diff)
		}
	})
}
