#!/usr/bin/env bash
# Checks the chart, the alert rules, the dashboard and the files of deploy/, without a cluster: helm/check.sh BINARY
# Needs Go, Python 3 with venv, openssl and systemd-analyze. Installs its tools once, below the cache directory.
set -euo pipefail
binary=$(realpath "$1")
cd "$(dirname "$0")/.."
tools=${XDG_CACHE_HOME:-$HOME/.cache}/autoplay-relay/tools
chart=helm/autoplay-relay
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

step() { printf '\n-- %s\n' "$*"; }

# NAME VERSION PACKAGE [FLAG]…: builds a Go command unless it exists, and adds it to PATH.
tool() {
    local directory=$tools/$1-$2
    [ -x "$directory/$1" ] || GOBIN=$directory CGO_ENABLED=0 nice go install -trimpath "${@:4}" "$3@v$2"
    PATH=$directory:$PATH
}

# Two tools differ from the usual choice: kube-score instead of kube-linter, whose module the Go proxy does not have; kubernetes-validate
# instead of kubeconform, which would download its schemas and cannot follow the references in those of kubernetes-validate.
step "tools"
tool helm 3.22.0 helm.sh/helm/v3/cmd/helm
tool helm-docs 1.14.2 github.com/norwoodj/helm-docs/cmd/helm-docs
tool kube-score 1.20.0 github.com/zegl/kube-score/cmd/kube-score
tool promtool 0.316.0 github.com/prometheus/prometheus/cmd/promtool -tags=remove_all_sd
# Through a module of our own: helm-unittest replaces one of its dependencies, and `go install` accepts `replace` only in the main module.
unittest=$tools/helm-unittest-$(sha256sum helm/check/unittest/go.mod | cut -c 1-12)
[ -x "$unittest/helm-unittest" ] || (cd helm/check/unittest && GOBIN=$unittest CGO_ENABLED=0 nice go install -trimpath \
    github.com/helm-unittest/helm-unittest/cmd/helm-unittest)
for own in resources compose; do
    (cd "helm/check/$own" && CGO_ENABLED=0 nice go build -trimpath -buildvcs=false -o "$work/$own" .)
done
python=$tools/python-$(sha256sum helm/check/requirements.txt | cut -c 1-12)
[ -x "$python/bin/kubernetes-validate" ] || { python3 -m venv "$python" && "$python/bin/pip" install -q -r helm/check/requirements.txt; }

step "lint"
kubernetes=(1.30.0 1.37.0) # the oldest that the chart supports, and the newest
for values in "$chart"/ci/*.yaml; do
    for version in "${kubernetes[@]}"; do
        helm lint --strict --quiet "$chart" -f "$values" --kube-version "$version"
    done
done
if helm template relay "$chart" -f "$chart/ci/minimal.yaml" --kube-version 1.29.0 >/dev/null 2>&1; then
    echo "a Kubernetes older than supported is not refused" && exit 1
fi

step "unit tests"
"$unittest/helm-unittest" "$chart"

step "what waits for a restart is a new pod, and nothing else is"
checksum() {
    helm template relay "$chart" -f "$chart/ci/minimal.yaml" --kube-version 1.37.0 "$@" >"$work/checked.yaml"
    sed -n 's/ *checksum.config: //p' "$work/checked.yaml"
}
first=$(checksum)
[ -n "$first" ]
# The relay's own list, without the keys that the chart sets by itself or not at all.
printf '[[upstreams]]\nproduct_id = "p"\nurl = "https://c.example.com/p"\n' >"$work/restart.toml"
waiting=$("$binary" check --config "$work/restart.toml" --restart-keys |
    grep -vE '^(server\.(\w+_)?listen|server\.tls_.*|log\.data_dir)$')
for key in $waiting; do
    case $key in
    *_bytes) value=100MiB ;;
    *_timeout | *retention) value=1m ;;
    *) value=99 ;;
    esac
    [ "$(checksum --set "$key=$value")" != "$first" ] || { echo "$key waits for a restart that does not come" && exit 1; }
done
[ "$(checksum --set edge.persistence.enabled=true)" != "$first" ]
[ "$(checksum --set "server.max_subscribers=5,upstreams[0].product_id=p,upstreams[0].url=https://c.example.com/p")" = "$first" ]
grep -q 'max_subscribers = 5' "$work/checked.yaml"

step "the chart's README is what its values say"
cp -r "$chart" "$work/chart"
helm-docs --log-level error --chart-search-root "$work/chart" --chart-to-generate "$work/chart"
diff -u "$chart/README.md" "$work/chart/README.md" || { echo "run helm-docs in $chart"; exit 1; }

step "what is packaged"
helm package "$chart" -d "$work" >/dev/null
tar tzf "$work"/autoplay-relay-*.tgz | sort >"$work/packaged"
grep -qx autoplay-relay/files/alerts.yaml "$work/packaged"
grep -qx autoplay-relay/files/dashboard.json "$work/packaged"
if grep -E '^autoplay-relay/(ci|tests)/' "$work/packaged"; then echo "is of no use to users" && exit 1; fi

step "what is rendered: schemas of Kubernetes and of its extensions, best practice, the relay's own check"
example=$work/agent
cp -r helm/examples/agent "$example"
mkdir "$example/charts" && cp "$work"/autoplay-relay-*.tgz "$example/charts/"
if helm template agent "$example" --set autoplay-relay.sidecar.url= --kube-version 1.37.0 >/dev/null 2>&1; then
    echo "a sidecar without its connector is not refused" && exit 1
fi
sidecar() { helm template agent "$example" --kube-version 1.37.0 "$@" | grep -A 1 'AUTOPLAY_RELAY__SERVER__.*LISTEN' | grep -oE '"?[^ "]*:[0-9]+"?$' | xargs; }
[ "$(sidecar)" = "[::]:9091" ]
[ "$(sidecar --set autoplay-relay.addressFamily=IPv4)" = "0.0.0.0:9091" ]
[ "$(sidecar --set autoplay-relay.addressFamily=IPv6)" = "[::]:9091 [::1]:8080 [::1]:9090" ]
for version in "${kubernetes[@]}"; do
    rendered=$work/rendered-$version
    mkdir "$rendered"
    # From the package, as users install it.
    for values in "$chart"/ci/*.yaml; do
        helm template relay "$work"/autoplay-relay-*.tgz -f "$values" --kube-version "$version" >"$rendered/$(basename "$values")"
    done
    helm template agent "$example" --kube-version "$version" >"$rendered/sidecar.yaml"
    for manifests in "$rendered"/*.yaml; do
        "$work/resources" "$manifests" >"$work/known.yaml"
        "$python/bin/kubernetes-validate" --strict --quiet -k "${version%.0}" "$work/known.yaml"
        kube-score score --kubernetes-version "v${version%.0}" -o json "$manifests" >"$work/$version-$(basename "$manifests").json" || true
    done
done
"$python/bin/python" helm/check/findings.py helm/check/findings.yaml "$work"/*.yaml.json
"$python/bin/python" helm/check/configs.py "$binary" "$work/rendered-${kubernetes[-1]}"/*.yaml
"$python/bin/python" helm/check/networks.py "$rendered/minimal.yaml"

step "alert rules and dashboard"
promtool check rules "$chart/files/alerts.yaml"
promtool test rules deploy/prometheus/alerts_test.yaml
"$python/bin/python" helm/check/metrics.py "$binary"

step "without Kubernetes: systemd, Compose"
# The binary is not installed at the unit's path, so the path is replaced. systemd reports unknown settings and continues.
sed "s#/usr/local/bin/autoplay-relay#$binary#" deploy/systemd/autoplay-relay.service >"$work/autoplay-relay.service"
told=$(systemd-analyze verify --man=no "$work/autoplay-relay.service" 2>&1)
[ -z "$told" ] || { echo "$told"; exit 1; }
systemd-analyze security --offline=true --threshold=20 --no-pager "$work/autoplay-relay.service" | tail -1 # 2 of 10
"$work/compose" deploy/compose/compose.yaml
mkdir "$work/prometheus" "$work/secrets"
cp deploy/prometheus/prometheus.yaml "$chart/files/alerts.yaml" "$work/prometheus/"
promtool check config "$work/prometheus/prometheus.yaml"
echo a-token >"$work/secrets/connector" && echo a-key >"$work/secrets/agent-a"
sed "s#/run/secrets#$work/secrets#" deploy/compose/config/relay.toml >"$work/relay.toml"
"$binary" check --config "$work/relay.toml" >/dev/null

step "passed"
