package httpapi_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"converge/producers/httpapi"
)

// A new idempotent endpoint: read the body, write in the transaction, render the answer. Keys, retries,
// problems and metrics are the package's.
func ExampleAPI_Idempotent() {
	var pool *pgxpool.Pool // of a schema that httpapi.Migrations and the service's own have prepared
	api, err := httpapi.New(httpapi.Config{})
	if err != nil {
		panic(err)
	}
	api.Handle("POST /vouchers", api.Idempotent(pool, "vouchers.issue",
		func(ctx context.Context, tx pgx.Tx, _ *http.Request, body *httpapi.Body) (httpapi.Response, error) {
			o := body.Object()
			owner := o.String("owner", httpapi.ID)
			amount := o.Int("amount", 1, 10_000)
			if err := body.Err(); err != nil {
				return httpapi.Response{}, err // 422 with all that is wrong; the key stays free
			}
			var id int64
			if err := tx.QueryRow(ctx, "INSERT INTO vouchers (owner, amount) VALUES ($1, $2) RETURNING id", owner, amount).Scan(&id); err != nil {
				return httpapi.Response{}, fmt.Errorf("issuing a voucher: %w", err)
			}
			return httpapi.JSON(http.StatusCreated, map[string]int64{"id": id}, map[string]string{"Location": fmt.Sprintf("/vouchers/%d", id)})
		}))

	request := httptest.NewRequest("POST", "http://localhost/vouchers", strings.NewReader(`{"owner":"c-1","amount":500}`))
	request.Header.Set("Content-Type", "application/json")
	answer := httptest.NewRecorder()
	api.ServeHTTP(answer, request) // without a key: a problem, before the database is asked
	fmt.Println(answer.Code, answer.Body)
	// Output: 400 {"type":"/problems/idempotency-key-missing","title":"Idempotency-Key is missing","status":400}
}
