#!/bin/sh
# Installs the real pict-rs outside the checkout, once a machine, and what it calls: ffmpeg, exiftool, ImageMagick.
# A fresh clone finds it again. VERSION=0.6.0-rc.6 brings another one.
set -eu

version="${VERSION:-0.5.25}"
cache="${XDG_CACHE_HOME:-$HOME/.cache}/pictrs-gate"
root="$cache/pict-rs-$version"

"$(dirname "$0")/../../.ci/packages.sh" ffmpeg:ffmpeg exiftool:libimage-exiftool-perl \
    /usr/bin/convert:imagemagick djxl:libjxl-tools cc:build-essential

# pict-rs calls ImageMagick 7: 0.5 as `magick convert …` and `magick identify …`, 0.6 as `magick …` alone.
# Debian 12 has version 6, whose programs take the same words, but call an AVIF HEIC and read no JPEG XL.
if [ "$(command -v magick || echo "$cache/magick/magick")" = "$cache/magick/magick" ]; then
    mkdir -p "$cache/magick"
    cat >"$cache/magick/new.$$" <<'END'
#!/bin/sh
case "$1" in
convert | identify) program="/usr/bin/$1" && shift ;;
*) program=/usr/bin/convert ;;
esac
case "$1 ${2:-}" in
"- JSON:")
    facts=$("$program" "$@") || exit
    printf '%s\n' "$facts" | sed 's/"format": "HEIC"/"format": "AVIF"/'
    ;;
"JXL:- "*)
    shift
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    trap 'exit 1' HUP INT TERM
    cat >"$folder/a.jxl"
    djxl "$folder/a.jxl" "$folder/a.png" 2>/dev/null && "$program" "$folder/a.png" "$@"
    ;;
*)
    exec "$program" "$@"
    ;;
esac
END
    chmod +x "$cache/magick/new.$$"
    mv "$cache/magick/new.$$" "$cache/magick/magick"
fi

if [ ! -x "$root/bin/pict-rs" ]; then
    command -v cargo >/dev/null || {
        echo "cargo is needed to build pict-rs: https://rustup.rs" >&2
        exit 1
    }
    echo "building pict-rs $version with cargo: about 13 minutes on two cores, once"
    cargo install pict-rs --version "$version" --locked --root "$root" --quiet
fi
"$root/bin/pict-rs" --version
