#!/usr/bin/env bash
# Instructions that the relay needs for an event and for a delivery, by function: they repeat where times do not.
# Needs valgrind. Takes some minutes after the build. benches/counts.py is the gate's check of the totals.
#
# The relay runs under callgrind twice, with 200 and with 1200 events to 20 subscribers (scenario K of benches/fanout); what the
# second run costs more is what a thousand events and their twenty thousand deliveries cost. A function that was inlined is part of
# the one it was inlined into. The kernel's work is not counted.
set -euo pipefail
cd "$(dirname "$0")/.."

bench=${FANOUT_BENCH:-$(cargo bench --locked --bench fanout --no-run --message-format=json 2>/dev/null |
    sed -n 's/.*"name":"fanout".*"executable":"\([^"]*\)".*/\1/p' | tail -1)}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
for scenario in K K2; do
    BENCH_RELAY_UNDER="valgrind --quiet --tool=callgrind --callgrind-out-file=$out/$scenario" \
        "$bench" --bench --only relay "$scenario" >"$out/$scenario.log" || { cat "$out/$scenario.log"; exit 1; }
    for kind in no yes; do
        # Lines like `123,456 (1.23%)  ???:function [binary]`, down to the last.
        callgrind_annotate --threshold=100 --show-percs=no --inclusive=$kind "$out/$scenario" 2>/dev/null |
            sed -n 's/^ *\([0-9][0-9,]*\)  *\(.*\)/\1\t\2/p' | sed 's/ \[[^]]*\]$//; s/???://' >"$out/$scenario.$kind"
    done
done

table() { # whether inclusive, lines, which, which not
    awk -F'\t' -v events=1000 -v deliveries=20000 '
        { gsub(",", "", $1) }
        FNR == NR { few[$2] += $1; next }
        { more[$2] += $1 }
        END { for (name in more) { each = (more[name] - few[name]); if (each > 0)
            printf "%.1f\t%.2f\t%s\n", each / events, each / deliveries, name } }
    ' "$out/K.$1" "$out/K2.$1" | sort -rn | { grep -E "$3" || true; } | { grep -vE "$4" || true; } | awk -F'\t' -v most="$2" '
        NR <= most { printf "| `%s` | %s | %s |\n", substr($3, 1, 110), $1, $2 }'
}
heading='| function | per event | a twentieth of it |
|---|---:|---:|'
printf '#### All of it\n\n%s\n' "$heading"
table no 1 'PROGRAM TOTALS' '^$'
printf '\n#### Functions and all they call\n\n%s\n' "$heading"
table yes 24 'autoplay_relay' 'drop_in_place|::main|::cli::|App::run'
printf '\n#### Functions alone\n\n%s\n' "$heading"
table no 25 . 'PROGRAM TOTALS'
