// Package schemas holds the contracts between services: which events there are and what they carry,
// how they are written as bytes, and who emits and reads them.
//
// The guarantee: what one release wrote, every later release reads (BACKWARD_TRANSITIVE, checked
// against every version kept in history/). It fails to hold for a topic that somebody writes without
// these schemas; what cannot be decoded is a permanent error that keeps the bytes.
//
// To change an event: change its .avsc and its struct, give a new field a default, and put a copy of the
// new .avsc into history/ under the next number. The tests say when one of these is missing.
package schemas
