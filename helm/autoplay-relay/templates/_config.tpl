{{- /*
The relay's configuration. The values have the names and shape of the configuration file; a value {existingSecret, key} becomes a
file, and its name gets the suffix "_file". `config` selects the values of a tier, `toml` renders them, `secretSources` lists the
files for the volume.
*/}}
{{- define "autoplay-relay.config" -}}
{{- $values := .root.Values }}
{{- $any := include "autoplay-relay.anyAddress" .root }}
{{- $adminHost := ternary $any (include "autoplay-relay.loopback" .root) (not (empty $values.auth.admin_key)) }}
{{- $listeners := dict "listen" (printf "%s:8080" $any) "admin_listen" (printf "%s:9090" $adminHost) "probe_listen" (printf "%s:9091" $any) }}
{{- $config := dict "server" (merge (dict) $listeners $values.server) "auth" $values.auth }}
{{- if eq .tier "edge" }}
{{- $log := deepCopy $values.log }}
{{- if $values.edge.persistence.enabled }}
{{- /* Below the volume's root, so that the relay creates the directory, for its own user alone. */}}
{{- $_ := set $log "data_dir" "/var/lib/autoplay-relay/log" }}
{{- end }}
{{- if $values.leaves.enabled }}
{{- $leaf := dict "name" "leaves" "key" $values.leaves.edgeKey "products" (list "*") }}
{{- $_ := set $config "auth" (merge (dict "keys" (append $values.auth.keys $leaf)) $values.auth) }}
{{- end }}
{{- $_ := merge $config (dict "upstreams" $values.upstreams "products" $values.products "webhooks" $values.webhooks "egress" $values.egress "log" $log) }}
{{- else }}
{{- $upstreams := list }}
{{- $heartbeat := include "autoplay-relay.seconds" ($values.server.heartbeat_interval | default "30s") | int }}
{{- range concat $values.upstreams $values.products }}
{{- $url := printf "http://%s-edge:8080/stream/%s" (include "autoplay-relay.fullname" $.root) .product_id }}
{{- $timeout := printf "%ds" (div (mul 5 $heartbeat) 2) }}
{{- $upstream := dict "product_id" .product_id "url" $url "token" $values.leaves.edgeKey "heartbeat_timeout" $timeout }}
{{- $upstreams = append $upstreams (merge $upstream (pick . "max_event_bytes")) }}
{{- end }}
{{- $_ := merge $config (dict "upstreams" $upstreams "log" (pick $values.log "memory_events" "memory_bytes")) }}
{{- end }}
{{- toYaml $config }}
{{- end }}

{{- /*
Values that a relay cannot apply while it runs: a change of one needs a new pod. The relay reloads all other values by itself, and
disconnects no subscriber for them.
In: root, tier.
*/}}
{{- define "autoplay-relay.waiting" -}}
{{- $config := include "autoplay-relay.config" . | fromYaml }}
{{- $listeners := pick $config.server "listen" "admin_listen" "probe_listen" }}
{{- $bounds := pick $config.server "write_timeout" "head_timeout" "max_concurrent_replays" }}
{{- toYaml (dict "server" (merge $listeners $bounds) "log" $config.log) }}
{{- end }}

{{- /* In: root, tier. */}}
{{- define "autoplay-relay.toml" -}}
{{- $config := include "autoplay-relay.config" . | fromYaml -}}
[server]
{{ include "autoplay-relay.entries" (dict "table" $config.server) }}
{{- range $config.upstreams }}

[[upstreams]]
{{ include "autoplay-relay.entries" (dict "table" . "at" (printf "upstreams/%s" .product_id)) }}
{{- end }}
{{- range $config.products }}

[[products]]
{{ include "autoplay-relay.entries" (dict "table" .) }}
{{- end }}

[auth]
{{ include "autoplay-relay.entries" (dict "table" (omit $config.auth "keys" "jwt") "at" "auth") }}
{{- range $config.auth.keys }}

[[auth.keys]]
{{ include "autoplay-relay.entries" (dict "table" . "at" (printf "auth/keys/%s" .name)) }}
{{- end }}
{{- with $config.auth.jwt }}

[auth.jwt]
{{ include "autoplay-relay.entries" (dict "table" . "at" "auth/jwt") }}
{{- end }}

[log]
{{ include "autoplay-relay.entries" (dict "table" $config.log) }}
{{- range $config.webhooks }}

[[webhooks]]
{{ include "autoplay-relay.entries" (dict "table" . "at" (printf "webhooks/%s" .id)) }}
{{- end }}
{{- with $config.egress }}

[egress]
{{ include "autoplay-relay.entries" (dict "table" . "at" "egress") }}
{{- end }}
{{- end }}

{{- /* Lines of one table. In: table, at = directory of its secrets. JSON strings and lists are valid TOML. */}}
{{- define "autoplay-relay.entries" -}}
{{- $lines := list }}
{{- range $key, $value := .table }}
{{- if kindIs "map" $value }}
{{- if $value.existingSecret }}
{{- $lines = append $lines (printf "%s_file = \"/etc/autoplay-relay/secrets/%s/%s\"" $key $.at $key) }}
{{- end }}
{{- else if kindIs "float64" $value }}
{{- $lines = append $lines (printf "%s = %d" $key (int64 $value)) }}
{{- else if not (kindIs "invalid" $value) }}
{{- $lines = append $lines (printf "%s = %s" $key (toRawJson $value)) }}
{{- end }}
{{- end }}
{{- join "\n" $lines }}
{{- end }}

{{- /* The files of a tier's secrets, as sources of a projected volume: the kubelet updates it, unlike subPath mounts. In: root, tier. */}}
{{- define "autoplay-relay.secretSources" -}}
{{- $config := include "autoplay-relay.config" . | fromYaml }}
{{- $tables := list (dict "at" "auth" "table" (omit $config.auth "keys" "jwt")) }}
{{- $tables = append $tables (dict "at" "auth/jwt" "table" $config.auth.jwt) }}
{{- $tables = append $tables (dict "at" "egress" "table" ($config.egress | default dict)) }}
{{- range $config.upstreams }}
{{- $tables = append $tables (dict "at" (printf "upstreams/%s" .product_id) "table" .) }}
{{- end }}
{{- range $config.auth.keys }}
{{- $tables = append $tables (dict "at" (printf "auth/keys/%s" .name) "table" .) }}
{{- end }}
{{- range $config.webhooks }}
{{- $tables = append $tables (dict "at" (printf "webhooks/%s" .id) "table" .) }}
{{- end }}
{{- $sources := list }}
{{- range $table := $tables }}
{{- range $key, $value := $table.table }}
{{- if and (kindIs "map" $value) $value.existingSecret }}
{{- $item := dict "key" $value.key "path" (printf "%s/%s" $table.at $key) }}
{{- $sources = append $sources (dict "secret" (dict "name" $value.existingSecret "items" (list $item))) }}
{{- end }}
{{- end }}
{{- end }}
{{- toYaml $sources }}
{{- end }}
