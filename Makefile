# Everything that is typed here. `make help` lists it.
.DEFAULT_GOAL := help
.PHONY: help fmt lint unit test model vectors race memory chaos fuzz bench run stop up down

help: ## lists the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

fmt: ## formats the code
	cargo fmt --all

lint: ## checks format, code, documentation and dependencies; any warning fails
	@STACK=native scripts/stack install
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --document-private-items --quiet
	@scripts/deny

unit: ## runs the unit tests: no Kafka, no database
	cargo test --workspace --lib --bins --exclude testkit -- --skip protocol::model

test: ## runs all tests against real parts that it starts and stops itself
	@scripts/test

model: ## searches larger worlds of the loading protocol; with WITHOUT=<rule>, shows what goes wrong without it
ifdef WITHOUT
	@MODEL_WITHOUT=$(WITHOUT) cargo test -p loader --lib without_the_rule_that_is_named -- --ignored --nocapture
else
	@MODEL_DEEP=yes cargo test --release -p loader --lib protocol::model -- --nocapture --test-threads 2 --skip needed
endif

vectors: ## runs the cases of any folder: make vectors SUITE=loading DIR=<folder>
	@scripts/vectors "$(SUITE)" "$(DIR)"

race: ## eight loaders make one table, N times: make race N=50
	@RACE_ROUNDS=$(or $(N),50) scripts/test -p warehouse --test it -- race --nocapture

memory: ## loads a batch of 2 GB in less than 400 MB
	@BATCH_MB=2048 scripts/test -p warehouse --test memory -- --nocapture

chaos: ## breaks instances, disks, Kafka, PostgreSQL, Redis, tables, rights and clocks while events are posted, for SECONDS=600; SEED=n repeats a plan
	@CHAOS_SECONDS=$(or $(SECONDS),600) CHAOS_SEED=$(SEED) scripts/test -p bulkerapp --test chaos -- --nocapture

fuzz: ## feeds damaged events to the path from JSON to rows, for SECONDS=60; wants nightly Rust and cargo-fuzz
	@scripts/fuzz $(or $(SECONDS),60)

bench: ## measures our figures beside their references (docs/performance.md)
	@scripts/bench

run: ## starts the parts and bulkerapp, loads the sample, shows the rows; Ctrl-C stops bulkerapp
	@scripts/run

stop: ## stops the parts that `make run` leaves running
	@scripts/stack down

up: ## starts Kafka, PostgreSQL and Redis alone
	@scripts/stack up

down: stop ## the same as stop
