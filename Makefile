# One entry for people and CI. Everything else is cargo.
.DEFAULT_GOAL := help
.PHONY: help build test interleavings mutants demo bench crash-soak sequence-soak kill-soak fuzz fuzz-smoke lint fmt clean-guests

NEXTEST_PROFILE ?= default
KILLS ?= 5000
# Of `make interleavings`: schedules a scenario, where they start, one scenario alone, a schedule to repeat.
ITERATIONS ?= 600
SEED ?= 1
SCENARIO ?=
SCHEDULE ?=
# For crash-soak: how long, which seeds, and of how many of 1000 places crashes are judged. About 15,000 crash states a seed.
DURATION ?= 3600
SEEDS ?= 1000..1000000
PLACES ?= 1000
# Of `make bench`: options of `pitstop-bench run`.
BENCH ?=
# Of `make mutants`: one or more names from tests/mutants/list.toml.
MUTANT ?=

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build pitstop and pitstopd, optimised, in target/release
	cargo build --release --package pitstop-backend --package pitstop-tools

test: ## install what is missing, then run all tests (root the first time)
	tests/setup.sh test
	cargo build --workspace --bins
	cargo nextest run --workspace --profile $(NEXTEST_PROFILE)

# A build of its own, so that nothing else ever sees the schedulers.
interleavings: ## explore how threads interleave (ITERATIONS=600 SEED=1 SCENARIO=... SCHEDULE=FILE)
	PITSTOP_SCHEDULES=$(ITERATIONS) PITSTOP_SEED=$(SEED) $(if $(SCHEDULE),PITSTOP_SCHEDULE=$(abspath $(SCHEDULE))) \
	RUSTFLAGS='--cfg pitstop_interleavings --deny warnings' CARGO_TARGET_DIR=target/interleavings CARGO_PROFILE_DEV_DEBUG=0 \
	cargo nextest run --package pitstop-format --lib --test shuttle --profile interleavings --no-tests fail \
		-E '(binary(shuttle) or test(/^layer::loom::/))$(if $(SCENARIO), and test($(SCENARIO)))'

mutants: ## break the engine on purpose, rule by rule, and see that tests notice (MUTANT=NAME)
	cargo run --quiet --package pitstop-tests --bin pitstop-mutants -- $(MUTANT)

demo: ## golden image, CI guests, refresh: the whole story with a Debian guest (root)
	tests/setup.sh demo
	cargo build --release --workspace --bins
	cargo run --release --quiet --package pitstop-tests --bin pitstop-demo

bench: ## measure beside qemu-storage-daemon and fio: tables, charts (BENCH='--folder /mnt/x'; see docs/performance.md)
	tests/setup.sh bench
	cargo build --release --workspace --bins
	target/release/pitstop-bench run $(BENCH)
	target/release/pitstop-bench report

kill-soak: ## kill the daemon KILLS times under guests' I/O and commands (root: mounts with FUSE)
	PITSTOP_KILLS=$(KILLS) cargo test --release --package pitstop-backend --test kill -- --nocapture

crash-soak: ## judge millions of crash states: DURATION=3600 SEEDS=1000..1000000 PLACES=1000
	PITSTOP_MODEL_SEEDS=$(SEEDS) PITSTOP_MODEL_SECONDS=$(DURATION) PITSTOP_MODEL_PLACES=$(PLACES) \
		cargo test --package pitstop-format --test model -- --nocapture

sequence-soak: SEEDS = 1000..11000
sequence-soak: PLACES = 5
sequence-soak: DURATION = 36000
sequence-soak: crash-soak ## 10,000 sequences of all operations against the model, few crashes each

lint: ## what CI asks of the sources: format and clippy without warnings
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features -- --deny warnings

fmt: ## format the sources
	cargo fmt --all

fuzz: ## fuzz one target: TARGET (see tests/fuzz/run.sh), SECONDS
	tests/setup.sh fuzz
	tests/fuzz/run.sh fuzz $(TARGET) $(SECONDS)

fuzz-smoke: ## every fuzz target: the kept corpus, then some seconds each
	tests/setup.sh fuzz
	tests/fuzz/run.sh smoke $(SECONDS)

clean-guests: ## remove the guest images, which are then built again
	rm -rf target/guest
