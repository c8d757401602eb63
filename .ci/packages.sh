#!/bin/sh
# Debian's programs that something here calls, installed where they are missing: packages.sh PROGRAM:PACKAGE …
# Without root it only says what to install.
set -eu

missing=""
for folder in /usr/lib/postgresql/*/bin; do PATH="$PATH:$folder"; done # Debian has no name for them on PATH
for pair in "$@"; do
    PATH="$PATH:/usr/sbin" command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair#*:}"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "please install:$missing" >&2
    exit 1
fi
apt-get update -q
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $missing
