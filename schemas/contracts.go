package schemas

import (
	"embed"
	"fmt"
	"reflect"
	"sync"
)

//go:embed *.avsc
var texts embed.FS

// goTypes pairs each event type with its Go struct. A test demands that it, the schemas and the routes
// name the same types.
var goTypes = map[string]reflect.Type{
	"OrderPlaced":        reflect.TypeFor[OrderPlaced](),
	"OrderCancelled":     reflect.TypeFor[OrderCancelled](),
	"OrderTimedOut":      reflect.TypeFor[OrderTimedOut](),
	"OrderStatusChanged": reflect.TypeFor[OrderStatusChanged](),
	"StockReserved":      reflect.TypeFor[StockReserved](),
	"StockRejected":      reflect.TypeFor[StockRejected](),
	"StockReleased":      reflect.TypeFor[StockReleased](),
	"PaymentAuthorized":  reflect.TypeFor[PaymentAuthorized](),
	"PaymentDeclined":    reflect.TypeFor[PaymentDeclined](),
	"PaymentVoided":      reflect.TypeFor[PaymentVoided](),
	"ShipmentArranged":   reflect.TypeFor[ShipmentArranged](),
	"ShipmentFailed":     reflect.TypeFor[ShipmentFailed](),
	"ShipmentCancelled":  reflect.TypeFor[ShipmentCancelled](),
	"ProfileUpdated":     reflect.TypeFor[ProfileUpdated](),
	"AccountOpened":      reflect.TypeFor[AccountOpened](),
	"TransferRequested":  reflect.TypeFor[TransferRequested](),
	"TransferConfirmed":  reflect.TypeFor[TransferConfirmed](),
	"TransferTimedOut":   reflect.TypeFor[TransferTimedOut](),
	"TransferDebited":    reflect.TypeFor[TransferDebited](),
	"TransferCompleted":  reflect.TypeFor[TransferCompleted](),
	"TransferFailed":     reflect.TypeFor[TransferFailed](),
}

// New returns a pointer to a zero value of the event type's Go struct, nil when the type is unknown.
func New(eventType string) any {
	t, ok := goTypes[eventType]
	if !ok {
		return nil
	}
	return reflect.New(t).Interface()
}

// Text returns the present Avro schema of an event type as it stands in its .avsc file, "" when the
// type is unknown.
func Text(eventType string) string {
	text, err := texts.ReadFile(eventType + ".avsc")
	if err != nil {
		return ""
	}
	return string(text)
}

// Subject is where a registry keeps the versions of one event type's schema.
type Subject struct {
	Name      string // TopicRecordName: topic, hyphen, full name of the record
	EventType string
	Schema    string // the present version
}

// Subjects returns the subject of every event type, in the order of [Routes].
func Subjects() []Subject {
	routes := Routes()
	subjects := make([]Subject, 0, len(routes))
	for _, r := range routes {
		subjects = append(subjects, Subject{
			Name:      r.Topic + "-" + present()[r.Type].shape.name,
			EventType: r.Type,
			Schema:    Text(r.Type),
		})
	}
	return subjects
}

// contract is one event type as the codec needs it.
type contract struct {
	topic  string
	goType reflect.Type
	shape  *shape // the present schema, for checking
	avro   schema // the present schema, for reading and writing
}

// present returns the contract of every event type, parsed once. The schemas are compiled in and a test
// parses them all, so one that does not parse is a fault of the program.
var present = sync.OnceValue(func() map[string]*contract {
	contracts := map[string]*contract{}
	for _, r := range Routes() {
		text := Text(r.Type)
		shape, err := parseShape(text)
		if err != nil {
			panic(fmt.Sprintf("schema %s.avsc: %v", r.Type, err))
		}
		avro, err := parseSchema(text)
		if err != nil {
			panic(fmt.Sprintf("schema %s.avsc: %v", r.Type, err))
		}
		contracts[r.Type] = &contract{topic: r.Topic, goType: goTypes[r.Type], shape: shape, avro: avro}
	}
	return contracts
})
