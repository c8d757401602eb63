#!/bin/sh
# Installs the real pict-rs outside the checkout, once a machine, and what it calls: ffmpeg, exiftool, ImageMagick.
# A fresh clone finds it again. VERSION=0.6.0-rc.6 brings another one.
set -eu

version="${VERSION:-0.5.25}"
cache="${XDG_CACHE_HOME:-$HOME/.cache}/pictrs-gate"
root="$cache/pict-rs-$version"

"$(dirname "$0")/../../.ci/packages.sh" ffmpeg:ffmpeg exiftool:libimage-exiftool-perl \
    /usr/bin/convert:imagemagick cc:build-essential

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
    command -v cargo >/dev/null || {
        echo "cargo is needed to build pict-rs: https://rustup.rs" >&2
        exit 1
    }
    echo "building pict-rs $version with cargo: about 13 minutes on two cores, once"
    cargo install pict-rs --version "$version" --locked --root "$root" --quiet
fi
"$root/bin/pict-rs" --version
