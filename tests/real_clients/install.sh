#!/bin/sh
# Brings the clients of tests/test_real_clients.py that are not Python: Debian's Chromium, curl and node, and from
# npm what package-lock.json names, outside the checkout, once a machine. Prints the folder of the npm packages.
set -eu

here="$(cd "$(dirname "$0")" && pwd)"
folder="${XDG_CACHE_HOME:-$HOME/.cache}/pictrs-gate/node"

"$here/../../.ci/packages.sh" chromium:chromium curl:curl node:nodejs npm:npm >&2
if ! cmp -s "$here/package-lock.json" "$folder/installed"; then
    mkdir -p "$folder"
    cp "$here/package.json" "$here/package-lock.json" "$folder"
    npm ci --prefix "$folder" --ignore-scripts --no-audit --no-fund --loglevel=error >&2
    cp "$here/package-lock.json" "$folder/installed"
fi
echo "$folder/node_modules"
