package main

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"converge/consumers/analytics"
	"converge/consumers/billing"
	"converge/consumers/event"
	"converge/consumers/inbox"
	"converge/consumers/inventory"
	"converge/consumers/ledger"
	"converge/consumers/orderviews"
	"converge/consumers/retry"
	"converge/consumers/shipping"
	"converge/internal/database"
	"converge/producers/httpapi"
	"converge/producers/identity"
	"converge/producers/orders"
	"converge/producers/outbox"
	"converge/producers/payments"
	"converge/producers/transfers"
	"converge/schemas"
)

// service is one entry of the table of services: what it keeps in the database and how it is built.
type service struct {
	name string
	sets []database.Set
	open func(deps) parts
}

// keeps reports whether the set's tables are among the service's.
func (s service) keeps(set database.Set) bool {
	return slices.ContainsFunc(s.sets, func(own database.Set) bool { return own.Name == set.Name })
}

// deps is what a service is given.
type deps struct {
	pool          *pgxpool.Pool
	outbox        *outbox.Outbox
	codec         *schemas.Codec
	log           *slog.Logger
	registerer    prometheus.Registerer
	orderDeadline time.Duration
	viewWait      time.Duration
}

// parts is what a service is made of; each may be nil or empty.
type parts struct {
	routes  func(*httpapi.API)
	handler event.Handler
	run     func(context.Context) error
}

var (
	outboxSet = database.Set{Name: "outbox", FS: outbox.Migrations}
	inboxSet  = database.Set{Name: "inbox", FS: inbox.Migrations}
	retrySet  = database.Set{Name: "retry", FS: retry.Migrations}
	apiSet    = database.Set{Name: "httpapi", FS: httpapi.Migrations}
)

// services is every service there is, in the order in which the documents name them.
func services() []service {
	return []service{
		{"orders", []database.Set{outboxSet, inboxSet, retrySet, apiSet, {Name: "orders", FS: orders.Migrations}}, openOrders},
		{"inventory", []database.Set{outboxSet, inboxSet, retrySet, {Name: "inventory", FS: inventory.Migrations}}, openInventory},
		{"payments", []database.Set{outboxSet, inboxSet, retrySet, apiSet, {Name: "payments", FS: payments.Migrations}}, openPayments},
		{"shipping", []database.Set{outboxSet, inboxSet, retrySet, {Name: "shipping", FS: shipping.Migrations}}, openShipping},
		{"transfers", []database.Set{outboxSet, inboxSet, retrySet, apiSet, {Name: "transfers", FS: transfers.Migrations}}, openTransfers},
		{"ledger", []database.Set{outboxSet, inboxSet, retrySet, {Name: "ledger", FS: ledger.Migrations}}, openLedger},
		{"identity", []database.Set{outboxSet, {Name: "identity", FS: identity.Migrations}}, openIdentity},
		{"billing", []database.Set{outboxSet, inboxSet, retrySet, {Name: "billing", FS: billing.Migrations}}, openBilling},
		{"analytics", []database.Set{outboxSet, inboxSet, retrySet, {Name: "analytics", FS: analytics.Migrations}}, openAnalytics},
		{"orderviews", []database.Set{outboxSet, inboxSet, retrySet, {Name: "orderviews", FS: orderviews.Migrations}}, openOrderViews},
	}
}

func serviceNames() []string {
	var names []string
	for _, s := range services() {
		names = append(names, s.name)
	}
	return names
}

// choose returns the services of the names, once each, or an error that lists what there is.
func choose(names []string) ([]service, error) {
	var chosen []service
	for _, s := range services() {
		if slices.Contains(names, s.name) || slices.Contains(names, "all") {
			chosen = append(chosen, s)
		}
	}
	for _, name := range names {
		if name != "all" && !slices.Contains(serviceNames(), name) {
			return nil, usageError{fmt.Errorf("there is no service %q: choose among %s, or all", name, strings.Join(serviceNames(), ", "))}
		}
	}
	return chosen, nil
}

func modules(chosen []service) []database.Module {
	var list []database.Module
	for _, s := range chosen {
		list = append(list, database.Module{Service: s.name, Sets: s.sets})
	}
	return list
}

func openOrders(d deps) parts {
	s := orders.New(orders.Config{Pool: d.pool, Outbox: d.outbox, Decoder: d.codec, OrderDeadline: d.orderDeadline, Logger: d.log, Registerer: d.registerer})
	return parts{s.Routes, s.Handler(), s.Run}
}

func openInventory(d deps) parts {
	s := inventory.New(inventory.Config{Pool: d.pool, Outbox: d.outbox, Decoder: d.codec})
	return parts{s.Routes, s.Handler(), nil}
}

func openPayments(d deps) parts {
	s := payments.New(payments.Config{Pool: d.pool, Outbox: d.outbox, Decoder: d.codec, OrderDeadline: d.orderDeadline, Logger: d.log})
	return parts{s.Routes, s.Handler(), s.Run}
}

func openShipping(d deps) parts {
	s := shipping.New(shipping.Config{Outbox: d.outbox, Decoder: d.codec})
	return parts{nil, s.Handler(), nil}
}

func openTransfers(d deps) parts {
	s := transfers.New(transfers.Config{Pool: d.pool, Outbox: d.outbox, Decoder: d.codec, Logger: d.log, Registerer: d.registerer})
	return parts{s.Routes, s.Handler(), s.Run}
}

func openLedger(d deps) parts {
	s := ledger.New(ledger.Config{Outbox: d.outbox, Decoder: d.codec})
	return parts{nil, s.Handler(), nil}
}

func openIdentity(d deps) parts {
	return parts{identity.New(identity.Config{Pool: d.pool, Outbox: d.outbox}).Routes, event.Handler{}, nil}
}

func openBilling(d deps) parts {
	s := billing.New(billing.Config{Pool: d.pool, Decoder: d.codec, ViewWait: d.viewWait})
	return parts{s.Routes, s.Handler(), nil}
}

func openAnalytics(d deps) parts {
	s := analytics.New(analytics.Config{Pool: d.pool, Decoder: d.codec, ViewWait: d.viewWait})
	return parts{s.Routes, s.Handler(), nil}
}

func openOrderViews(d deps) parts {
	s := orderviews.New(orderviews.Config{Pool: d.pool, Decoder: d.codec, ViewWait: d.viewWait})
	return parts{s.Routes, s.Handler(), nil}
}
