-- +goose Up

-- customer_id is TENANT/ID where there are tenants. The list of all orders is that of one tenant's, '' without.
CREATE INDEX order_views_of_tenant
    ON order_views (left(customer_id, greatest(strpos(customer_id, '/') - 1, 0)), placed_at, id);
DROP INDEX order_views_newest;

-- +goose Down
CREATE INDEX order_views_newest ON order_views (placed_at, id);
DROP INDEX order_views_of_tenant;
