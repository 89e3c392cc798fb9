#!/usr/bin/env bash
# install.sh LIST...: installs the Debian packages that the named lists ask
# for, where they are missing. A list has one package a line and, after "#",
# the reason for it, where Debian's own description does not tell; "a|b" takes
# the first that this Debian has.
#
# Installing needs root or sudo. No service is started by it, and one that
# runs already is left alone.
set -euo pipefail

say() { printf 'setup: %s\n' "$*"; }

installed() {
  [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  else
    sudo -n "$@"
  fi
}

apt() {
  as_root env DEBIAN_FRONTEND=noninteractive DEBCONF_NOWARNINGS=yes apt-get -q -o DPkg::Lock::Timeout=300 "$@" </dev/null
}

# missing prints "NAMES<tab>REASON" for each line of the lists of which no
# alternative is installed.
missing() {
  local line names reason name found
  while IFS= read -r line || [ -n "$line" ]; do
    names=${line%%#*}
    reason=
    if [ "$names" != "$line" ]; then
      reason=${line#*#}
    fi
    names=$(tr -d '[:space:]' <<<"$names")
    [ -n "$names" ] || continue
    found=
    for name in ${names//|/ }; do
      if installed "$name"; then
        found=$name
      fi
    done
    [ -n "$found" ] || printf '%s\t%s\n' "$names" "${reason# }"
  done < <(cat "$@")
}

# available prints the first of the alternatives that apt can install.
available() {
  local name
  for name in ${1//|/ }; do
    if apt-cache --quiet=0 show "$name" >/dev/null 2>&1; then
      printf '%s\n' "$name"
      return
    fi
  done
  say "none of ${1//|/, } is known to apt here; debvisor's tests run on Debian 12 and 13" >&2
  return 1
}

# description is what Debian says of a package, in one line.
description() {
  apt-cache show "$1" | sed -n 's/^Description[^:]*: //p' | sed 1q
}

# quiet_services keeps dpkg from starting what it installs, for as long as
# this script runs, unless the machine has a policy of its own.
quiet_services() {
  local policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    trap 'as_root rm -f /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
  fi
}

install_missing() {
  local list=$1 names reason name packages=()
  say "apt-get update, because packages are missing"
  apt update >/dev/null
  while IFS=$'\t' read -r names reason; do
    name=$(available "$names")
    say "installing $name: ${reason:-$(description "$name")}"
    packages+=("$name")
  done <<<"$list"
  quiet_services
  apt install -y --no-install-recommends "${packages[@]}" >/dev/null
}

# libvirt_user makes the account that the QEMU driver looks up when it loads.
# Debian makes it in libvirt-daemon-system, which also starts services and is
# not wanted here; the numbers are those that Debian reserves.
libvirt_user() {
  if installed libvirt-daemon-driver-qemu && ! getent passwd libvirt-qemu >/dev/null; then
    say "adding the user libvirt-qemu (64055): without it libvirt's QEMU driver does not load"
    getent group libvirt-qemu >/dev/null || as_root groupadd --system --gid 64055 libvirt-qemu
    as_root useradd --system --key SYS_UID_MAX=64055 --uid 64055 --gid libvirt-qemu --home-dir /var/lib/libvirt --shell /usr/sbin/nologin libvirt-qemu
  fi
}

main() {
  local list
  if ! command -v apt-get >/dev/null; then
    say "this machine has no apt-get; the tests that need Debian packages say so and are skipped"
    return
  fi
  list=$(missing "$@")
  if [ -z "$list" ]; then
    say "all packages of $* are installed"
  elif [ "$(id -u)" -ne 0 ] && ! sudo -n true 2>/dev/null; then
    say "missing, and installing needs root or sudo without a password:"
    cut -f1 <<<"$list"
    say "run: sudo $0 $*"
    return 1
  else
    install_missing "$list"
  fi
  libvirt_user
}

main "$@"
