// Package inventory keeps the stock: it sets goods aside when an order is placed, all of it or none, and
// puts them back when the order fails.
//
// The guarantee: available + reserved of a product is changed only by PUT /stock, never by a saga; no
// level is ever negative; after a compensation nothing is set aside for the order and nothing ever will
// be, whichever came first. reserved includes what has been sold: nobody tells Inventory of an order's
// completion, and nothing it promises depends on it. It fails to hold if somebody changes the tables by
// hand.
package inventory
