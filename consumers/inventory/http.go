package inventory

import (
	"net/http"

	"github.com/jackc/pgx/v5"

	"converge/producers/catalog"
	"converge/producers/httpapi"
)

// Routes adds what Inventory answers to the API.
func (s *Service) Routes(api *httpapi.API) {
	api.Handle("GET /products", s.getProducts)
	api.Handle("GET /stock/{sku}", s.getStock)
	api.Handle("PUT /stock/{sku}", func(w http.ResponseWriter, r *http.Request) error { return s.putStock(api, w, r) })
}

type productBody struct {
	SKU   string    `json:"sku"`
	Name  string    `json:"name"`
	Price moneyBody `json:"price"`
}

type moneyBody struct {
	Amount   int64  `json:"amount"` // minor units
	Currency string `json:"currency"`
}

func (s *Service) getProducts(w http.ResponseWriter, _ *http.Request) error {
	items := []productBody{}
	for _, p := range catalog.Products() {
		items = append(items, productBody{p.SKU, p.Name, moneyBody{p.Amount, p.Currency}})
	}
	return write(w, map[string]any{"items": items})
}

type stockBody struct {
	SKU       string `json:"sku"`
	Available int64  `json:"available"`
	Reserved  int64  `json:"reserved"`
	Version   int64  `json:"version"`
}

func (s *Service) getStock(w http.ResponseWriter, r *http.Request) error {
	sku := r.PathValue("sku")
	if !catalog.ValidID(sku) {
		return noProduct()
	}
	found, ok, err := oneStock(r.Context(), s.pool, findStockSQL, sku)
	if err != nil {
		return err
	}
	if !ok {
		return noProduct()
	}
	if httpapi.NotModified(w, r, found.Version) {
		return nil
	}
	return write(w, bodyOf(found))
}

func noProduct() error { return httpapi.Fail(httpapi.NotFound, "there is no such product") }

func bodyOf(s stock) stockBody { return stockBody{s.SKU, s.Available, s.Reserved, s.Version} }

// putStock sets what is available beside what is reserved. Whoever did not get the answer to a PUT may
// send it again: when nothing else has happened since, it is answered as before.
func (s *Service) putStock(api *httpapi.API, w http.ResponseWriter, r *http.Request) error {
	b, err := api.ReadBody(w, r)
	if err != nil {
		return err
	}
	o := b.Object()
	o.Ignore("sku", "reserved", "version")
	available := o.Int("available", 0, httpapi.MaxInt)
	if err := b.Err(); err != nil {
		return err
	}
	precondition, err := httpapi.ReadPrecondition(r)
	if err != nil {
		return err
	}
	sku := r.PathValue("sku")
	if !catalog.ValidID(sku) {
		return noProduct()
	}
	var now stock
	err = pgx.BeginFunc(r.Context(), s.pool, func(tx pgx.Tx) error {
		found, ok, err := oneStock(r.Context(), tx, lockOneStockSQL, sku)
		switch {
		case err != nil:
			return err
		case !ok:
			return noProduct()
		case precondition.Holds(found.Version):
			now, _, err = oneStock(r.Context(), tx, setStockSQL, sku, available)
			return err
		case found.setFrom(precondition) && found.Available == available:
			now = found
			return nil
		default:
			return httpapi.Fail(httpapi.PreconditionFailed, "")
		}
	})
	if err != nil {
		return err
	}
	w.Header().Set("ETag", httpapi.ETag(now.Version))
	w.Header().Set("Consistency-Token", api.Token("stock/"+now.SKU, now.Version))
	return write(w, bodyOf(now))
}

// setFrom reports whether the last change was a PUT with the precondition.
func (s stock) setFrom(p httpapi.Precondition) bool {
	return s.PutFrom == s.Version-1 && p.HeldBefore(s.Version)
}

func write(w http.ResponseWriter, v any) error {
	response, err := httpapi.JSON(http.StatusOK, v, nil)
	if err != nil {
		return err
	}
	return response.Write(w)
}
