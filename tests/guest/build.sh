#!/usr/bin/env bash
# Builds what guests boot from, into target/guest/. Each part is built once and again when its
# recipe (this folder) changes.
#
# usage: tests/guest/build.sh PART...
#   kernel   vmlinuz       Debian's cloud kernel, with the modules that virtio-blk and ext4 need
#   busybox  initramfs.gz  small guest; with root= on the kernel's command line it boots that instead
#   debian   debian.raw    Debian root file system with systemd, fio and e2fsprogs, as a raw ext4 image
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$(cd "$here/../.." && pwd)/target/guest
debian_image_size=1536M

say() { printf 'guest: %s\n' "$*" >&2; }
die() { printf 'guest: error: %s\n' "$*" >&2; exit 1; }

mkdir -p "$out"
exec 9>"$out/.lock"
flock 9

work=
trap '[ -z "$work" ] || rm -rf "$work"' EXIT

# A part is current when the recipe it was built from is this one.
recipe_of() { (cd "$here" && cat build.sh "$@") | sha256sum | cut -d' ' -f1; }
is_current() { # part file
    [ -e "$out/$2" ] && [ "$(cat "$out/$1.recipe" 2>/dev/null)" = "$recipe" ]
}
finish() { # part
    printf '%s\n' "$recipe" >"$out/$1.recipe"
    rm -rf "$work"
    work=
}
start() { # part
    rm -f "$out/$1.recipe"
    work=$(mktemp -d "$out/build-$1.XXXXXX")
    chmod 755 "$work"
}

# Debian's metapackage depends on the current kernel package: download that one and unpack it.
build_kernel() {
    recipe=$(recipe_of)
    if is_current kernel vmlinuz; then return; fi
    say "fetching Debian's cloud kernel"
    start kernel
    local package
    package=$(apt-cache depends --no-recommends --no-suggests linux-image-cloud-amd64 2>/dev/null |
        awk '$1 == "Depends:" { print $2; exit }')
    if [ -z "$package" ]; then
        apt-get update -qq || die "apt-get update failed: check the network and the configured mirror"
        package=$(apt-cache depends --no-recommends --no-suggests linux-image-cloud-amd64 |
            awk '$1 == "Depends:" { print $2; exit }')
    fi
    [ -n "$package" ] || die "package linux-image-cloud-amd64 is not known to apt; is this Debian on amd64?"
    (cd "$work" && apt-get download -qq -o APT::Sandbox::User=root "$package") || {
        apt-get update -qq
        (cd "$work" && apt-get download -qq -o APT::Sandbox::User=root "$package")
    } || die "could not download $package; run 'apt-get update' and try again"
    dpkg -x "$work"/*.deb "$work/root"
    rm -rf "$out/modules"
    mkdir -p "$out/modules"
    collect_modules "$work/root"
    cp "$work"/root/boot/vmlinuz-* "$out/vmlinuz"
    finish kernel
}

# The modules, less those built into the kernel, in the order in which they must be loaded: modules/NN-name.ko.
collect_modules() { # unpacked package
    local root=$1 version module path number=10
    version=$(basename "$root"/lib/modules/*)
    depmod -b "$root" "$version"
    for module in virtio_pci virtio_blk crc32c_generic ext4; do
        while read -r _ path _; do
            [ -e "$path" ] || continue
            compgen -G "$out/modules/*-$(basename "$path" .xz)" >/dev/null && continue
            case $path in
            *.xz) xz -dc "$path" >"$out/modules/$number-$(basename "$path" .xz)" ;;
            *) cp "$path" "$out/modules/$number-$(basename "$path")" ;;
            esac
            number=$((number + 1))
        done < <(modprobe -d "$root" -S "$version" --show-depends "$module" 2>/dev/null | grep '^insmod ')
    done
    compgen -G "$out/modules/*-virtio_blk.ko" >/dev/null || die "the kernel package has no module virtio_blk"
}

# A program of this machine and the libraries it is linked with.
add_program() { # root program
    local path library
    path=$(command -v "$2") || die "program $2 is missing; run tests/setup.sh"
    cp "$path" "$1/usr/bin/"
    for library in $(ldd "$path" | grep -o '/[^ ]*'); do
        mkdir -p "$1$(dirname "$library")"
        cp -Lu "$library" "$1$library"
    done
}

build_busybox() {
    recipe=$(recipe_of init agent)$(cat "$out/kernel.recipe")
    if is_current busybox initramfs.gz; then return; fi
    say "building the busybox guest"
    start busybox
    local root=$work/root program
    mkdir -p "$root"/{bin,dev,proc,sys,tmp,run,mnt,newroot,modules,usr/bin,usr/sbin,sbin,etc}
    cp /usr/bin/busybox "$root/bin/busybox" 2>/dev/null || cp /bin/busybox "$root/bin/busybox"
    ln -s busybox "$root/bin/sh"
    for program in e2fsck blkdiscard; do
        add_program "$root" "$program"
    done
    cp "$out"/modules/*.ko "$root/modules/"
    cp "$here/init" "$root/init"
    cp "$here/agent" "$root/bin/agent"
    chmod 755 "$root/init" "$root/bin/agent"
    : >"$root/etc/mtab"
    (cd "$root" && find . | sort | cpio --quiet -o -H newc -R 0:0) | gzip -1 >"$work/initramfs.gz"
    mv "$work/initramfs.gz" "$out/initramfs.gz"
    finish busybox
}

build_debian() {
    recipe=$(recipe_of agent)
    if is_current debian debian.raw; then return; fi
    [ "$(id -u)" -eq 0 ] || die "building the Debian image needs root"
    say "building the Debian root file system (a minute or two)"
    start debian
    local root=$work/root codename
    codename=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
    apt-get indextargets --format '$(CODENAME) deb $(REPO_URI) $(RELEASE) $(COMPONENT)' |
        awk -v codename="$codename" '$1 == codename && $NF == "main" { print $2, $3, $4, $5 }' | sort -u >"$work/sources"
    [ -s "$work/sources" ] || die "apt has no source for suite $codename; run 'apt-get update' and try again"
    mmdebstrap --quiet --variant=minbase --include=systemd-sysv,fio,e2fsprogs \
        --aptopt='APT::Install-Recommends "false"' --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        "$codename" "$root" "$work/sources" || die "mmdebstrap failed; see its messages above"
    install -m 755 "$here/agent" "$root/usr/local/sbin/pitstop-agent"
    cat >"$root/etc/systemd/system/pitstop-agent.service" <<'UNIT'
[Unit]
Description=Runs the commands that the harness sends
After=local-fs.target
[Service]
ExecStart=/usr/local/sbin/pitstop-agent
[Install]
WantedBy=multi-user.target
UNIT
    mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
    ln -s ../pitstop-agent.service "$root/etc/systemd/system/multi-user.target.wants/"
    ln -sf /dev/null "$root/etc/systemd/system/serial-getty@.service"
    ln -sf /dev/null "$root/etc/systemd/system/getty@.service"
    printf '/dev/vda / ext4 rw 0 0\n' >"$root/etc/fstab"
    printf 'pitstop-guest\n' >"$root/etc/hostname"
    rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
    truncate -s "$debian_image_size" "$work/debian.raw"
    mke2fs -q -F -t ext4 -L pitstop -d "$root" "$work/debian.raw"
    mv "$work/debian.raw" "$out/debian.raw"
    finish debian
}

for part in "$@"; do
    case $part in
    kernel | busybox | debian) "build_$part" ;;
    *) die "unknown part $part: kernel, busybox or debian" ;;
    esac
done
