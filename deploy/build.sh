#!/usr/bin/env bash
# Builds a static binary into target/image/linux/ARCH/transload, where deploy/Dockerfile takes it from.
#
#   deploy/build.sh [amd64|arm64]
#
# For this machine's own kind it needs rustup and musl-gcc (Debian: musl-tools). For the other one it
# needs a C compiler for that: `pip install ziglang cargo-zigbuild` brings one for all of them.
set -euo pipefail
cd "$(dirname "$0")/.."

arch=${1:-$(dpkg --print-architecture)}
case $arch in
  amd64) target=x86_64-unknown-linux-musl ;;
  arm64) target=aarch64-unknown-linux-musl ;;
  *) echo "amd64 or arm64, not $arch" >&2; exit 2 ;;
esac
rustup target list --installed | grep -qx "$target" || rustup target add "$target"

# The same sources give the same bytes, wherever they lie and whoever builds them.
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export CARGO_INCREMENTAL=0
cargo_home=${CARGO_HOME:-$HOME/.cargo}
export RUSTFLAGS="--remap-path-prefix=$PWD=/transload --remap-path-prefix=$cargo_home=/cargo"
if [ "$(uname -m)" = "${target%%-*}" ] && command -v musl-gcc >/dev/null; then
  build=(cargo build)
elif command -v cargo-zigbuild >/dev/null; then
  build=(cargo zigbuild)
else
  echo "no C compiler for $target: apt-get install musl-tools, or pip install ziglang cargo-zigbuild" >&2
  exit 1
fi
"${build[@]}" --release --locked --target "$target" --bin transload
install -D -m 0755 "target/$target/release/transload" "target/image/linux/$arch/transload"
ls -l "target/image/linux/$arch/transload"
