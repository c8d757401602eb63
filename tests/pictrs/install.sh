#!/bin/sh
# Installs the real pict-rs outside the checkout, once a machine, and what it calls: ffmpeg, exiftool, ImageMagick.
# A fresh clone finds it again. VERSION=0.6.0-rc.6 brings another one.
set -eu

version="${VERSION:-0.5.25}"
cache="${XDG_CACHE_HOME:-$HOME/.cache}/pictrs-gate"
root="$cache/pict-rs-$version"

missing=""
for pair in ffmpeg:ffmpeg exiftool:libimage-exiftool-perl /usr/bin/convert:imagemagick; do
    command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair#*:}"
done
if [ -n "$missing" ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "pict-rs needs:$missing. Please install them." >&2
        exit 1
    fi
    apt-get update -q
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $missing
fi

# pict-rs calls ImageMagick 7: 0.5 as `magick convert …` and `magick identify …`, 0.6 as `magick …` alone.
# Debian 12 has version 6, whose programs take the same words.
if ! command -v magick >/dev/null; then
    mkdir -p "$cache/magick"
    cat >"$cache/magick/magick" <<'END'
#!/bin/sh
case "$1" in
convert | identify) program="$1" && shift ;;
*) program=convert ;;
esac
exec "/usr/bin/$program" "$@"
END
    chmod +x "$cache/magick/magick"
fi

if [ ! -x "$root/bin/pict-rs" ]; then
    echo "building pict-rs $version with cargo: about 13 minutes on two cores, once"
    cargo install pict-rs --version "$version" --locked --root "$root" --quiet
fi
"$root/bin/pict-rs" --version
