#!/usr/bin/env bash
# Measures everything that is installed and writes benches/RESULTS.md. Run it on a quiet machine; arguments go to the fan-out bench
# (`--pairs 3`, say). Install what is to be compared before: apt-get install nginx-core libnginx-mod-nchan pushpin valgrind strace
# Centrifugo is built once, with Go, into target/tools.
set -euo pipefail
cd "$(dirname "$0")/.."
ulimit -n "$(ulimit -Hn)"

version() { dpkg-query -W -f='${Version}' "$1" 2>/dev/null || echo "not installed"; }

# The version is part of the report, so it is fixed. Without Go, or where the module cannot be fetched, the report says so.
centrifugo_version=6.9.1
centrifugo=target/tools/centrifugo
centrifugo() { # as built by Go, or why it was not built
    "$centrifugo" version 2>/dev/null || echo "not measured: Go could not build it"
}
if ! centrifugo | grep -qwF "v$centrifugo_version"; then
    rm -f "$centrifugo"
    module=github.com/centrifugal/centrifugo/v6
    GOBIN=$PWD/target/tools CGO_ENABLED=0 nice go install -trimpath -ldflags "-s -w -X $module/internal/build.Version=$centrifugo_version" \
        "$module@v$centrifugo_version" ||
        echo "CENTRIFUGO IS NOT MEASURED: Go could not build version $centrifugo_version" >&2
fi

cargo bench --locked --features micro --bench micro --no-run
cargo bench --locked --bench fanout --bench webhooks --no-run
began=$SECONDS
new=$(mktemp)
trap 'rm -f "$new"' EXIT
status=0
{
    echo '# Results'
    echo
    echo 'The last full run of the benches, written by `benches/results.sh`. How to read it: the heads of `benches/fanout/main.rs`,'
    echo '`benches/micro/main.rs` and `benches/webhooks/main.rs`.'
    echo
    echo "- autoplay-relay $(git describe --always --dirty), $(rustc --version), $(date -u '+%F %H:%M') UTC"
    echo "- nginx-core $(version nginx-core) with libnginx-mod-nchan $(version libnginx-mod-nchan); pushpin $(version pushpin); valgrind $(version valgrind)"
    echo "- Centrifugo: $(centrifugo)"
    echo '- not measured: Mercure (it is not in Debian, nor is its module at the Go proxy)'
    echo
    echo '## Fan-out'
    echo
    echo "\`cargo bench --bench fanout -- --all $*\`"
    echo
    cargo bench --locked --quiet --bench fanout -- --all "$@" || status=$?
    echo
    echo '### Medians of several pairs'
    echo
    for pairs in '5 A A5' '3 C E'; do
        echo "\`cargo bench --bench fanout -- --pairs $pairs\`"
        echo
        # shellcheck disable=SC2086
        cargo bench --locked --quiet --bench fanout -- --pairs $pairs || status=$?
        echo
    done
    echo '## Parts'
    echo
    echo '`cargo bench --features micro --bench micro`'
    echo
    cargo bench --locked --quiet --features micro --bench micro || status=$?
    echo
    echo '## Webhooks'
    echo
    echo '`cargo bench --bench webhooks`'
    echo
    cargo bench --locked --quiet --bench webhooks || status=$?
    if command -v valgrind >/dev/null; then
        echo
        echo '## Instructions'
        echo
        echo '`benches/callgrind.sh`'
        echo
        benches/callgrind.sh || status=$?
    fi
    if command -v valgrind >/dev/null && command -v strace >/dev/null; then
        echo
        echo '`benches/counts.py`'
        echo
        benches/counts.py | sed 's/^/- /' || status=$?
    fi
    echo
    echo "The whole run took $(((SECONDS - began + 30) / 60)) minutes."
} >"$new"
cat "$new" >benches/RESULTS.md
exit "$status"
