# converge: `make` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help run demo build test test-mutants test-kafka test-browser test-contract check challenge bench bench-relay bench-consumers bench-http prove-relay prove-consumers simulate-consumers clean

GO      ?= go
BIN     := bin/converge
DIR     ?= .converge

# The race detector needs a C compiler; without one the tests run all the same.
RACE    := $(shell test "$$($(GO) env CGO_ENABLED)" = 1 && command -v "$$($(GO) env CC)" >/dev/null && echo -race)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  \033[1m%-18s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: build ## the whole pipeline in one process: console on http://127.0.0.1:8080, Kafka on 9092
	@exec $(BIN) up --dir $(DIR)

demo: build ## the same with a gentle load, so that every picture moves
	@exec $(BIN) up --dir $(DIR) --demo

build: ## the binary, bin/converge
	@$(GO) build -o $(BIN) ./cmd/converge

test: ## every test of the product: real PostgreSQL, embedded Kafka, race detector
	$(GO) test $(RACE) -short -p 4 -parallel 4 -timeout 15m $$($(GO) list ./... | grep -v /lab/challenge) # they wait more than they work
	$(GO) test $(RACE) -short -timeout 15m ./lab/challenge # alone: it judges who was slow because of whom
	$(GO) test -short -tags synctests -timeout 15m -run '^TestSimulated' ./consumers/group -sim.runs=20 -sim.seed=1 # the race detector would make it ten times as long

test-mutants: ## every test of the tests: code with faults planted in it, each of which must be found
	$(GO) test -p 2 -timeout 20m -run 'Planted|Mutant' $$($(GO) list ./... | grep -v /lab/challenge)
	$(GO) test -timeout 15m -run 'Planted|Mutant' ./lab/challenge
	$(GO) test -timeout 15m -tags synctests -run '^TestSimulationsFindPlantedFaults$$' ./consumers/group -sim.seed=1

test-kafka: ## the end-to-end tests against a real Apache Kafka (needs Java 17 and Maven, or KAFKA_BROKERS)
	CONVERGE_TEST_KAFKA=real $(GO) test -timeout 15m -count=1 -run 'Kafka|EndToEnd' ./cmd/converge ./internal/kafkatest

test-browser: ## Chromium clicks through the console and the API's pages (needs chromium)
	$(GO) test -timeout 10m -count=1 -tags browser -run Browser ./console ./producers/openapi ./cmd/converge

CONTRACT := .cache/contract/bin/schemathesis

# SEED repeats a run, MAX_EXAMPLES (200) is how many requests are made up for each operation.
test-contract: $(CONTRACT) ## a running pipeline answers as its OpenAPI document says: schemathesis makes up the requests (needs Python 3.10 with venv)
	CONVERGE_TEST_CONTRACT=$(abspath $(CONTRACT)) $(GO) test -timeout 20m -count=1 -v -run Contract ./cmd/converge

$(CONTRACT): producers/openapi/contract/requirements.txt
	@python3 -m venv --clear .cache/contract
	@.cache/contract/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

check: ## format, vet, staticcheck, architecture, dashboards and rules, compose file, known vulnerabilities
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo 'not formatted (gofmt -w):'; gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags browser ./console ./producers/openapi ./cmd/converge
	$(GO) vet -tags synctests ./consumers/group
	GOOS=darwin $(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) mod tidy -diff
	$(GO) test -count=1 ./internal/architecture ./deploy/... ./schemas/...
	$(GO) test -count=1 -run ComposeFile ./cmd/converge
	@deploy/check-rules.sh
	@deploy/check-vulnerabilities.sh

prove-relay: ## kill the relay N times (20) in every kind of trouble and judge what came of it; SEED repeats a run, REAL=1 takes Apache Kafka (Java 17, Maven), ONCE=1 publishes exactly once, POLLING=1 polls, OUTAGE=10m takes Kafka away
	$(if $(REAL),CONVERGE_TEST_KAFKA=real) $(GO) test -count=1 -timeout 3h -v -run '^TestRelayLosesNothing$$' ./relay/prove \
		-prove.kills=$(or $(N),20) -prove.seed=$(or $(SEED),0) -prove.exactly-once=$(if $(ONCE),true,false) -prove.polling=$(if $(POLLING),true,false) -prove.outage=$(or $(OUTAGE),0)

prove-consumers: ## strike the consumers' processes N times (12) in every kind of trouble and judge what came of it; SEED repeats a run, REAL=1 takes Apache Kafka (Java 17, Maven), OUTAGE=10m takes PostgreSQL and then Kafka away under load instead
	$(if $(REAL),CONVERGE_TEST_KAFKA=real) $(GO) test -count=1 -timeout 3h -v -run '$(if $(OUTAGE),^TestAnOutageUnderLoadIsOnlyAPause$$,^TestEventsAreAppliedOnceAndInOrder$$)' ./consumers/prove \
		-prove.blows=$(or $(N),12) -prove.seed=$(or $(SEED),0) -prove.outage=$(or $(OUTAGE),2s)

simulate-consumers: ## run whole groups through N seeds (100) of troubles in virtual time and judge them; SEED is the first (else one is drawn and printed), MUTANTS=1 plants faults that must be found
	$(GO) test -count=1 -timeout 3h -v -tags synctests -run '$(if $(MUTANTS),^TestSimulationsFindPlantedFaults$$,^TestSimulatedGroupsKeepTheirPromises$$)' ./consumers/group \
		-sim.runs=$(or $(N),100) -sim.seed=$(or $(SEED),0)

challenge: build ## profile changes flow while Analytics is down; an independent checker gives the verdict
	@$(BIN) challenge profile

bench: ## benchmarks: ratios measured side by side in one run
	$(GO) test -run '^$$' -bench . -benchtime 2s ./relay/... ./consumers/group/... ./schemas/...

# SMALL=1 is a minute without Java; SCALE, ROUNDS, CASES and JSON are handed on (go run ./relay/bench -help).
bench-relay: build ## the relay beside pg_recvlogical and Debezium, on a real Kafka (Java 17, Maven; else SMALL=1)
	@$(GO) build -o bin/bench-relay ./relay/bench
	@exec bin/bench-relay -relay $(BIN) $(if $(SMALL),-small) $(if $(SCALE),-scale $(SCALE)) $(if $(ROUNDS),-rounds $(ROUNDS)) \
		$(if $(CASES),-cases $(CASES)) $(if $(JSON),-json $(JSON))

bench-consumers: ## the consumer runtime beside a transaction per event, on a real Kafka (Java 17, Maven; else SMALL=1)
	$(if $(SMALL),,CONVERGE_TEST_KAFKA=real) $(GO) test -count=1 -timeout 1h -v -run '^TestBenchConsumers$$' ./consumers/bench \
		-bench.events=$(or $(EVENTS),400000) -bench.rounds=$(or $(ROUNDS),3) -bench.seconds=15 $(if $(JSON),-bench.json=$(abspath $(JSON)))

bench-http: ## an idempotent POST beside a bare durable INSERT, and over HTTP at rising rates (SMALL=1 is a minute; ROUNDS, JSON)
	$(GO) test -count=1 -timeout 2h -v -run '^TestBenchHTTP$$' ./producers/bench $(if $(SMALL), \
		-bench.requests=200 -bench.seconds=1 -bench.first=500 -bench.last=4000, \
		-bench.requests=2000 -bench.seconds=10 -bench.first=1100 -bench.last=60000) \
		-bench.rounds=$(or $(ROUNDS),$(if $(SMALL),1,5)) $(if $(JSON),-bench.json=$(abspath $(JSON)))

clean: ## remove what run, demo and build made
	rm -rf $(DIR) bin .cache
