package retry

import "embed"

// Migrations creates held_keys, held_events and dead_letters in the schema that search_path names first.
//
//go:embed migrations/*.sql
var Migrations embed.FS
