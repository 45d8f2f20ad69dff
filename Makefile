# One entry for people and CI. Everything else is cargo.
.DEFAULT_GOAL := help
.PHONY: help build test demo kill-soak lint fmt clean-guests

NEXTEST_PROFILE ?= default
KILLS ?= 5000

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build pitstop and pitstopd, optimised, in target/release
	cargo build --release --package pitstop-backend --package pitstop-tools

test: ## install what is missing, then run all tests (root the first time)
	tests/setup.sh test
	cargo build --workspace --bins
	cargo nextest run --workspace --profile $(NEXTEST_PROFILE)

demo: ## golden image, CI guests, refresh: the whole story with a Debian guest (root)
	tests/setup.sh demo
	cargo build --release --workspace --bins
	cargo run --release --quiet --package pitstop-tests --bin pitstop-demo

kill-soak: ## kill the daemon KILLS times under guests' I/O and commands (root: mounts with FUSE)
	PITSTOP_KILLS=$(KILLS) cargo test --release --package pitstop-backend --test kill -- --nocapture

lint: ## what CI asks of the sources: format and clippy without warnings
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features -- --deny warnings

fmt: ## format the sources
	cargo fmt --all

clean-guests: ## remove the guest images, which are then built again
	rm -rf target/guest
