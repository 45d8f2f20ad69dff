#!/usr/bin/env bash
# Installs what the tests, the demo, the benchmark and CI need on a Debian 12 that has a Rust toolchain.
#
# usage: tests/setup.sh [test|demo|bench|lint|fuzz]
#
# Does nothing, quickly, when everything is there. Needs root only when a package is missing and for
# the demo's guest. `demo` leaves out what only the tests use (cargo-nextest, the QMP client); `lint`
# sees to a C compiler, rustfmt and clippy, `fuzz` to a C++ compiler, `bench` to fio, QEMU's storage daemon and qemu-img.
set -euo pipefail
cd "$(dirname "$0")/.."

purpose=${1:-test}

say() { printf 'setup: %s\n' "$*" >&2; }
die() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# Packages are asked for by the program that is missing, so that a machine which has the
# program from elsewhere is left alone.
packages=()
need() { # program package...
    have "$1" || packages+=("${@:2}")
}

apt_updated=no
apt_update() {
    [ "$apt_updated" = no ] || return 0
    apt-get update -qq || die "apt-get update failed: check the network and the configured mirror, then run this again"
    apt_updated=yes
}

require_root() {
    [ "$(id -u)" -eq 0 ] || die "missing: $*; run 'tests/setup.sh' as root once (or install them by hand), then try again"
    have apt-get || die "missing: $*; this machine has no apt-get: install them by hand, then try again"
}

install_packages() {
    apt_update
    say "installing $*"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null </dev/null ||
        die "apt-get install $* failed; see its messages above"
}

# QEMU: system emulator, qemu-img and storage daemon of one version. Debian 12's own is 7.2, and
# its packages exclude newer qemu-utils, so there all of it comes from backports.
install_qemu() {
    require_root qemu-system-x86_64 qemu-img qemu-storage-daemon
    local codename uri
    codename=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
    if [ "$codename" != bookworm ]; then
        install_packages qemu-system-x86 qemu-utils
        return
    fi
    apt_update
    if ! apt-get indextargets --format '$(RELEASE)' | grep -qx bookworm-backports; then
        # The mirror is the one this machine already uses for its base system.
        uri=$(apt-get indextargets --format '$(RELEASE) $(REPO_URI)' | awk '$1 == "bookworm" { print $2; exit }')
        [ -n "$uri" ] || die "no apt source for suite bookworm is configured; add one, then run this again"
        say "adding suite bookworm-backports from the configured mirror"
        printf 'Types: deb\nURIs: %s\nSuites: bookworm-backports\nComponents: main\nSigned-By: %s\n' \
            "$uri" /usr/share/keyrings/debian-archive-keyring.gpg >/etc/apt/sources.list.d/bookworm-backports.sources
        apt_updated=no
        apt_update
    fi
    say "installing QEMU from bookworm-backports"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends -t bookworm-backports \
        qemu-system-x86 qemu-utils >/dev/null </dev/null || die "installing QEMU failed; see apt's messages above"
}

have cargo || die "cargo not found; install a Rust toolchain first, for instance with rustup"

case $purpose in
test | demo | bench | lint | fuzz) ;;
*) die "unknown purpose $purpose: test, demo, bench, lint or fuzz" ;;
esac

need cc gcc libc6-dev
need make make
[ "$purpose" != fuzz ] || need c++ g++
if [ "$purpose" = lint ] || [ "$purpose" = fuzz ]; then
    if [ ${#packages[@]} -gt 0 ]; then
        require_root "${packages[@]}"
        install_packages "${packages[@]}"
    fi
    [ "$purpose" = lint ] || exit 0
    for component in rustfmt clippy; do
        cargo "${component/rust/}" --version >/dev/null 2>&1 && continue
        have rustup || die "cargo ${component/rust/} is missing: install the toolchain's component $component"
        say "adding the toolchain's component $component"
        rustup component add "$component" >/dev/null </dev/null || die "rustup component add $component failed"
    done
    exit 0
fi
if [ "$purpose" = bench ]; then
    need fio fio
    need findmnt util-linux
    if [ ${#packages[@]} -gt 0 ]; then
        require_root "${packages[@]}"
        install_packages "${packages[@]}"
    fi
    { have qemu-img && have qemu-storage-daemon; } || install_qemu
    exit 0
fi
need mmdebstrap mmdebstrap
need cpio cpio
need depmod kmod
need mke2fs e2fsprogs
need blkdiscard util-linux
need prlimit util-linux
[ "$(id -u)" -eq 0 ] || need fusermount3 fuse3 # to mount the file system whose requests fail
need ar binutils
need xz xz-utils
[ -x /usr/bin/busybox ] && ldd /usr/bin/busybox >/dev/null 2>&1 && packages+=(busybox-static) # not the static one
[ -x /usr/bin/busybox ] || packages+=(busybox-static)
if [ "$purpose" = test ]; then
    need python3 python3
    python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || packages+=(python3-venv)
fi
if [ ${#packages[@]} -gt 0 ]; then
    require_root "${packages[@]}"
    install_packages "${packages[@]}"
fi
if ! { have qemu-system-x86_64 && have qemu-img && have qemu-storage-daemon; }; then
    install_qemu
fi

if [ "$purpose" = test ]; then
    if ! cargo nextest --version >/dev/null 2>&1; then
        # Without its self-update, which is much to build and nothing to us.
        say "installing cargo-nextest (builds from source, some minutes)"
        cargo install --locked --quiet --no-default-features --features default-no-update cargo-nextest </dev/null || die "cargo install cargo-nextest failed"
    fi
    # The QMP client that people use, for the control socket's tests.
    venv=target/qmp-venv
    if ! "$venv/bin/python" -c 'import qemu.qmp' >/dev/null 2>&1; then
        say "installing the Python package qemu.qmp"
        rm -rf "$venv"
        mkdir -p target
        python3 -m venv "$venv" && "$venv/bin/pip" install --quiet qemu.qmp==0.0.6 </dev/null ||
            die "installing qemu.qmp 0.0.6 in $venv failed"
    fi
fi

if [ "$purpose" = demo ]; then
    tests/guest/build.sh kernel busybox debian
else
    tests/guest/build.sh kernel busybox
fi
