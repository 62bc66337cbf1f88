#!/usr/bin/env bash
# Builds the image by deploy/docker/Dockerfile, without a registry, and tests it: deploy/docker/check.sh
# Needs root on Debian with Rust, buildah, mmdebstrap, openssl, objcopy and Python 3. Instead of pulling the two base images of the Dockerfile,
# the script builds one from Debian's packages and mounts this machine's Rust; all other steps are the Dockerfile's. Results stay below the
# cache directory.
set -euo pipefail
cd "$(dirname "$0")/../.."
cache=${XDG_CACHE_HOME:-$HOME/.cache}/autoplay-relay/image
mkdir -p "$cache/target"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=overlay

step() { printf '\n-- %s\n' "$*"; }
bud() { buildah --root "$cache/store" --runroot "$cache/run" "$@"; }

step "Debian, and Rust on it"
if ! bud inspect --type image localhost/rust >/dev/null 2>&1; then
    mmdebstrap --quiet --variant=minbase --include=ca-certificates,gcc,libc6-dev bookworm "$work/debian.tar"
    container=$(bud from scratch)
    bud add --quiet "$container" "$work/debian.tar" / >/dev/null
    bud commit --quiet "$container" localhost/debian >/dev/null
    # The root certificates of this machine, so that its access to the crates works during the build. They do not get into the image.
    bud copy --quiet "$container" /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt >/dev/null
    bud config --env PATH=/usr/local/rust/bin:/usr/local/bin:/usr/bin:/bin "$container"
    bud commit --quiet --rm "$container" localhost/rust >/dev/null
fi

step "build"
# Each change adds some 75 MB of layers.
[ "$(du -sm "$cache/store" | cut -f 1)" -lt 3000 ] || bud rmi --prune >/dev/null
bud build --format docker --layers --pull-never --quiet -f deploy/docker/Dockerfile --ignorefile deploy/docker/Dockerfile.dockerignore \
    --build-arg RUST=localhost/rust --build-arg DEBIAN=localhost/debian -v "$(rustc --print sysroot):/usr/local/rust:ro" \
    -v "${CARGO_HOME:-$HOME/.cargo}/registry:/root/.cargo/registry" -v "$cache/target:/src/target" -t localhost/autoplay-relay . >"$work/id"

step "run"
container=$(bud from --pull-never localhost/autoplay-relay)
trap 'bud rm "$container" >/dev/null; rm -rf "$work"' EXIT
bud inspect --type image localhost/autoplay-relay >"$work/image.json"
python3 deploy/docker/check.py "$(bud mount "$container")" "$work/image.json"
