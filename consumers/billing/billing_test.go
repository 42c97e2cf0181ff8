package billing

import (
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"converge/consumers/event"
	"converge/internal/profiletest"
)

var follower = profiletest.Follower{Name: "billing", Migrations: Migrations, Path: "/billing/accounts", Journal: "account_changes",
	New: func(pool *pgxpool.Pool, decoder event.Decoder) profiletest.Service {
		return New(Config{Pool: pool, Decoder: decoder})
	}}

func TestBillingFollowsProfiles(t *testing.T) { profiletest.Run(t, follower) }
