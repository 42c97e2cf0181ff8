package schemas_test

import (
	"testing"

	"converge/schemas"
)

var sample = &schemas.OrderPlaced{
	OrderID: "0197f0c0-0000-7000-8000-000000000001", CustomerID: "c-1", TotalAmount: 4999, Currency: "EUR",
	Items:         []schemas.Line{{SKU: "book", Quantity: 1}, {SKU: "lamp", Quantity: 2}},
	PaymentMethod: "card-ok", ShipCountry: "DE",
}

func BenchmarkEncode(b *testing.B) {
	for _, format := range []schemas.Format{schemas.Avro, schemas.JSON} {
		b.Run(string(format), func(b *testing.B) {
			codec := schemas.NewCodec(format, testIDs(nil))
			b.ReportAllocs()
			for b.Loop() {
				if _, _, _, err := codec.Encode("OrderPlaced", sample); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, format := range []schemas.Format{schemas.Avro, schemas.JSON} {
		b.Run(string(format), func(b *testing.B) {
			codec := schemas.NewCodec(format, testIDs(nil))
			_, contentType, value, err := codec.Encode("OrderPlaced", sample)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				var got schemas.OrderPlaced
				if err := codec.Decode(b.Context(), "OrderPlaced", contentType, value, &got); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
