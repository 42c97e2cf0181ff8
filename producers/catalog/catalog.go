// Package catalog holds what every service of the shop agrees on before any order: the products with
// their prices, the ways to pay, and where parcels go. Orders prices and refuses by it without asking
// another service; Inventory lists it.
//
// The guarantee: it is constant within one build, so a price cannot change between an order's check and
// its total. Processes of two builds may disagree for as long as both run; an order keeps the prices it
// was placed with.
package catalog

import "slices"

// Product is something that can be ordered.
type Product struct {
	SKU      string
	Name     string
	Amount   int64  // price of one, in minor units
	Currency string // ISO 4217
}

// Currency is what every product is priced in.
const Currency = "USD"

var products = []Product{
	{"BOOK-1", "Paperback", 1499, Currency},
	{"LAMP-1", "Desk lamp", 3950, Currency},
	{"MUG-1", "Mug", 850, Currency},
	{"RARE-1", "First edition, the last copy", 129900, Currency},
}

// Products returns every product by SKU. The slice is the caller's.
func Products() []Product { return slices.Clone(products) }

// Lookup returns the product of the SKU.
func Lookup(sku string) (Product, bool) {
	for _, p := range products {
		if p.SKU == sku {
			return p, true
		}
	}
	return Product{}, false
}

// The ways to pay are test values, as payment providers document them.
const (
	CardOK       = "card-ok"       // authorized at once
	CardDeclined = "card-declined" // declined at once
	CardSlow     = "card-slow"     // authorized only after the order's deadline
	CardError2   = "card-error-2"  // two transient failures, then authorized
)

// PaymentMethods returns every way to pay; the first is the default.
func PaymentMethods() []string { return []string{CardOK, CardDeclined, CardSlow, CardError2} }

// NotServed is the country (ISO 3166-1 alpha-2) that no carrier serves.
const NotServed = "AQ"

// DefaultCountry is where an order goes that does not say.
const DefaultCountry = "DE"

// maxID is how many characters an id may have.
const maxID = 64

// ValidID reports whether id is one that the services accept from outside: 1 to 64 characters of
// A-Z a-z 0-9 _ . : -
func ValidID(id string) bool {
	if id == "" || len(id) > maxID {
		return false
	}
	for _, c := range []byte(id) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '_', c == '.', c == ':', c == '-':
		default:
			return false
		}
	}
	return true
}
