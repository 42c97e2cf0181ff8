#!/usr/bin/env bash
# The lesson's worked examples and exercises, against a running pipeline: make run in another shell, then
#
#   docs/examples.sh
#
# Every request is printed as the curl that you can type, with its answer. It needs curl and nothing else; the
# events are shown with bin/converge. It ends with code 0 when everything came out as it says here. Run again it
# shows what a key is for: POST /payments answers 200 at once, for the charge was made the first time.
set -euo pipefail
cd "$(dirname "$0")/.."

api=${API:-http://127.0.0.1:8080}
token=${TOKEN:-} # for an API that was started with --api-tokens
converge=${CONVERGE:-bin/converge}
brokers=${BROKERS:-127.0.0.1:9092}
registry=${REGISTRY:-http://127.0.0.1:8081}
run=$(date +%s)-$$ # makes keys and accounts that are new to this run

work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$work"' EXIT

title() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
say()   { printf '\n# %s\n' "$*"; }
fail()  { printf '\nNOT AS EXPECTED: %s\n' "$*" >&2; exit 1; }

# ask METHOD PATH [KEY BODY]: one request; leaves status and body.
ask() {
  local args=(-X "$1" "$api$2")
  if (($# == 4)); then args+=(-H "Idempotency-Key: $3" -H 'Content-Type: application/json' -d "$4"); fi
  printf '\n$ curl -i'; printf ' %q' "${args[@]}"; printf '%s\n' "${token:+ -H \"Authorization: Bearer \$TOKEN\"}"
  if [[ $token ]]; then args+=(-H "Authorization: Bearer $token"); fi
  curl -sS -i "${args[@]}" | tr -d '\r' >"$work/answer"
  grep -viE '^(content-length|date|x-content-type-options|x-request-id):' "$work/answer"; echo
  status=$(awk 'NR == 1 {print $2}' "$work/answer")
  body=$(sed '1,/^$/d' "$work/answer")
}

expect() { # expect STATUS...: it is one of these
  local one; for one; do [[ $status == "$one" ]] && return; done
  fail "status $status, not $*"
}
member() { sed -n 's/.*"'"$1"'":"\{0,1\}\([^",}]*\).*/\1/p' <<<"$body" | head -n 1; } # a member of a flat answer
is() { [[ $(member "$1") == "$2" ]] || fail "$1 is $(member "$1"), not $2"; }
header() { grep -qi "^$1" "$work/answer" || fail "no header $1"; }

# follow URL: polls a status until its state is final, as often as Retry-After says.
follow() {
  local tries
  for ((tries = 0; tries < 60; tries++)); do
    ask GET "$1"; expect 200
    case $(member state) in COMPLETED | FAILED) return ;; esac
    sleep "$(awk 'tolower($1) == "retry-after:" {print $2}' "$work/answer")"
  done
  fail "$1 did not end"
}

title 'Worked example 1: an order, as a saga'
say 'Accepted now: 202 and where to look. Nothing is reserved, charged or shipped yet.'
ask POST /orders "order-$run" '{"customer_id":"c-1","items":[{"sku":"BOOK-1","quantity":2}]}'
expect 202; header 'Location: /orders/'
order=$(member id)
say 'Finished later: Inventory, Payments and Shipping react to events, Orders to theirs.'
follow "$(member status_url)"; is state COMPLETED
say 'Its history: each step, and the event that brought it about.'
ask GET "/orders/$order"; expect 200

say 'A card that is declined: what was reserved is released, and the status says why, as a problem.'
ask POST /orders "declined-$run" '{"customer_id":"c-1","items":[{"sku":"BOOK-1","quantity":2}],"payment_method":"card-declined"}'
expect 202; follow "$(member status_url)"; is state FAILED; is reason payment_declined

say 'An address that no carrier serves: the payment is voided and the stock released.'
ask POST /orders "unserved-$run" '{"customer_id":"c-1","items":[{"sku":"BOOK-1","quantity":1}],"ship_to":{"country":"AQ"}}'
expect 202; follow "$(member status_url)"; is state FAILED; is reason shipment_refused

title 'Worked example 2: outbox and change data capture'
say 'Every step above was a row in an outbox, in the transaction that made it; the relay brought it to Kafka.'
printf '\n$ %s event tail orders inventory payments shipping --from-beginning | grep %s\n\n' "$converge" "$order"
"$converge" event tail orders inventory payments shipping --from-beginning --brokers "$brokers" --registry "$registry" >"$work/events" &
tail=$!
shown() { grep "$order" "$work/events" | grep -q "$1"; }
for ((tries = 0; tries < 150; tries++)); do
  shown OrderPlaced && shown StockReserved && shown PaymentAuthorized && shown ShipmentArranged && break
  kill -0 "$tail" || fail 'converge event tail ended'
  sleep 0.2
done
kill "$tail"; wait "$tail" 2>/dev/null || true
grep "$order" "$work/events" | cut -c 1-150
for type in OrderPlaced StockReserved PaymentAuthorized ShipmentArranged; do shown $type || fail "no $type of $order"; done
say 'With kcat, without a word of converge:'
printf "\n$ kcat -b %s -t orders -C -e -q -f '%%k %%h\\\\n' | grep %s\n" "$brokers" "$order"
if command -v kcat >/dev/null; then kcat -b "$brokers" -t orders -C -e -q -f '%k %h\n' | grep "$order" | cut -c 1-150; fi
say 'A read model, built from those events by a service that never asks Orders:'
ask GET "/order-views/$order"; expect 200; is state COMPLETED

title 'Worked example 3: an idempotent POST'
say 'The first request charges: 201 and a receipt. (200 if this script has run here before: the charge is that one.)'
ask POST /payments abc-123 '{"order_id":42,"amount":100}'
expect 201 200; first=$body; receipt=$(member receipt_id)
say 'The retry gets the same bytes and the same receipt, as 200: nothing was charged.'
ask POST /payments abc-123 '{"order_id":42,"amount":100}'
expect 200; header 'Idempotency-Replayed: true'
[[ $body == "$first" ]] || fail 'the retry has another body'
say 'The same key for something else is a mistake, and says so.'
ask POST /payments abc-123 '{"order_id":42,"amount":999}'
expect 422; is type /problems/idempotency-key-reused
say 'There is one charge.'
ask GET '/payments?order_id=42'; expect 200
[[ $(grep -o "$receipt" <<<"$body" | wc -l) -eq 1 ]] || fail 'not one charge'

title 'Exercise 1: the state table of an order'
say 'docs/saga.md has every state and every event; it is made from the code. What you saw above, from its history:'
ask GET "/orders/$order"; grep -o '"state":"[A-Z]*"' <<<"$body" | tail -n +2 | tr '\n' ' '; echo

title 'Exercise 2: POST /transfers, 202 and a status'
ask POST /accounts "from-$run" '{"id":"from-'"$run"'","opening_balance":100}'; expect 201
ask POST /accounts "to-$run" '{"id":"to-'"$run"'","opening_balance":0}'; expect 201
transfer='{"from_account":"from-'"$run"'","to_account":"to-'"$run"'","amount":30}'
ask POST /transfers "transfer-$run" "$transfer"; expect 202; id=$(member id)
follow "$(member status_url)"; is state COMPLETED
say 'A duplicate, when all is over: 202 and the same id; the money has moved once.'
ask POST /transfers "transfer-$run" "$transfer"; expect 202; is id "$id"; header 'Idempotency-Replayed: true'
ask GET "/accounts/from-$run"; is balance 70
ask GET "/accounts/to-$run"; is balance 30
say 'It can fail after it was accepted: the status is 200, and tells.'
ask POST /transfers "poor-$run" '{"from_account":"from-'"$run"'","to_account":"to-'"$run"'","amount":1000}'; expect 202
follow "$(member status_url)"; is state FAILED; is reason insufficient_funds

printf '\nEverything came out as it says here.\n'
