#!/usr/bin/env bash
# Builds the fuzz targets as cargo-fuzz does, without needing it or a nightly toolchain, and runs them.
#
# usage: tests/fuzz/run.sh smoke [SECONDS]        every target: the kept corpus, then SECONDS (default 8) of fuzzing
#        tests/fuzz/run.sh fuzz TARGET [SECONDS]  one target (default 300 seconds); what is new joins the corpus
#        tests/fuzz/run.sh cmin TARGET            leaves out of the corpus what reaches nothing of its own
#        tests/fuzz/run.sh repeat TARGET FILE...  runs single inputs, such as a crash
#
# SANITIZER=address builds with AddressSanitizer (an unstable flag, allowed here for the stable compiler). The library
# and the programs are compiled with debug assertions and overflow checks. A crash is left in
# tests/fuzz/artifacts/TARGET; docs/testing.md says what to do with it.
set -euo pipefail
cd "$(dirname "$0")"

die() { printf 'fuzz: error: %s\n' "$*" >&2; exit 1; }

targets=(open container journal catalog chains messages control import addendum)
host=$(rustc -vV | sed -n 's/^host: //p')
# Longest input, a bound on memory and on the time of one input: far more than any input should need.
limits=(-rss_limit_mb=1024 -malloc_limit_mb=256 -timeout=20 -verbosity=0 -print_final_stats=1)
flags="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-simplifycfg-branch-fold-threshold=0 \
--cfg fuzzing -Ccodegen-units=1"
folder=../../target/fuzz
case ${SANITIZER:-none} in
none) ;;
address)
    export RUSTC_BOOTSTRAP=1
    flags="$flags -Zsanitizer=address"
    folder=../../target/fuzz-address
    limits=("${limits[@]/-rss_limit_mb=1024/-rss_limit_mb=3072}")
    # A pointer to nothing but a count ends where its memory ends, and counts as leaked.
    export ASAN_OPTIONS=detect_leaks=0
    ;;
*) die "unknown SANITIZER '$SANITIZER': none or address" ;;
esac
command -v c++ >/dev/null || die "no C++ compiler, which libFuzzer needs: run 'tests/setup.sh fuzz' as root"

build() { # [cargo's arguments...]
    RUSTFLAGS="$flags" CARGO_TARGET_DIR=$folder CARGO_INCREMENTAL=0 \
        cargo build --locked --quiet --release --target "$host" "$@" || die "the targets do not build"
}

known() {
    local target
    for target in "${targets[@]}"; do [ "$target" = "${1:-}" ] && return; done
    die "unknown target '${1:-}': ${targets[*]}"
}

longest() {
    case $1 in
    open | import | control) echo 8192 ;;
    *) echo 1024 ;;
    esac
}

run() { # TARGET ARGUMENTS...
    local target=$1
    shift
    mkdir -p "artifacts/$target"
    "$folder/$host/release/$target" "${limits[@]}" -artifact_prefix="artifacts/$target/" "-max_len=$(longest "$target")" "$@"
}

case ${1:-} in
smoke)
    build
    for target in "${targets[@]}"; do
        # Found inputs stay out of the kept corpus: they go to the first folder.
        found=$folder/found/$target
        mkdir -p "$found"
        log=$folder/$target.log
        if ! run "$target" -max_total_time="${2:-8}" "$found" "corpus/$target" >"$log" 2>&1; then
            cat "$log" >&2
            die "target $target has failed; its input is in tests/fuzz/artifacts/$target"
        fi
        printf 'fuzz: %-9s %s inputs run\n' "$target" \
            "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")" >&2
    done
    ;;
fuzz)
    known "${2:-}"
    build --bin "$2"
    run "$2" -verbosity=1 -max_total_time="${3:-300}" "corpus/$2"
    ;;
cmin)
    known "${2:-}"
    build --bin "$2"
    rm -rf "$folder/least" && mkdir -p "$folder/least"
    run "$2" -merge=1 "$folder/least" "corpus/$2"
    rm -rf "corpus/$2" && mv "$folder/least" "corpus/$2"
    ;;
repeat)
    known "${2:-}"
    build --bin "$2"
    run "$2" "${@:3}"
    ;;
*) sed -n '2,13s/^# \{0,1\}//p' run.sh; exit 2 ;;
esac
