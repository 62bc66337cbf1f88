{{- define "autoplay-relay.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride }}
{{- else if contains .Chart.Name .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- /* Labels that select the pods of this release, or of one tier. In: root, tier. */}}
{{- define "autoplay-relay.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .tier }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}

{{- define "autoplay-relay.labels" -}}
{{ include "autoplay-relay.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "autoplay-relay.image" -}}
{{- with .Values.image -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- /* The address of all interfaces: over IPv6 the relay's socket takes IPv4, too, and where a node has no IPv6 it is 0.0.0.0 by itself. */}}
{{- define "autoplay-relay.anyAddress" -}}
{{- ternary "0.0.0.0" "[::]" (eq .Values.addressFamily "IPv4") }}
{{- end }}

{{- /* Loopback: a pod has that of IPv4 in every cluster but some with IPv6 alone. */}}
{{- define "autoplay-relay.loopback" -}}
{{- ternary "[::1]" "127.0.0.1" (eq .Values.addressFamily "IPv6") }}
{{- end }}

{{- /* The families of a Service. */}}
{{- define "autoplay-relay.ipFamilies" -}}
{{- if eq .Values.addressFamily "dual" -}}
ipFamilyPolicy: PreferDualStack
{{- else -}}
ipFamilyPolicy: SingleStack
ipFamilies: [{{ .Values.addressFamily }}]
{{- end }}
{{- end }}

{{- /* The tier that serves subscribers. */}}
{{- define "autoplay-relay.front" -}}
{{- ternary "leaf" "edge" .Values.leaves.enabled }}
{{- end }}

{{- /* Seconds of a duration such as "1m 500ms", rounded up. */}}
{{- define "autoplay-relay.seconds" -}}
{{- $milliseconds := 0 }}
{{- $units := dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000 "d" 86400000 }}
{{- range regexFindAll "[0-9]+(ms|s|m|h|d)" . -1 }}
{{- $unit := regexFind "[a-z]+" . }}
{{- $milliseconds = add $milliseconds (mul (trimSuffix $unit . | atoi) (get $units $unit)) }}
{{- end }}
{{- div (add $milliseconds 999) 1000 }}
{{- end }}

{{- /* Bytes of a size, in the relay's units ("64MiB") or a volume's ("5Gi"). */}}
{{- define "autoplay-relay.bytes" -}}
{{- $units := dict "B" 1 "kB" 1000 "MB" 1000000 "GB" 1000000000 "TB" 1000000000000
  "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 }}
{{- $unit := regexFind "[A-Za-z]+" . }}
{{- mul (regexFind "[0-9]+" . | int64) (get $units (ternary $unit (trimSuffix "B" $unit) (hasKey $units $unit))) }}
{{- end }}

{{- /*
Longest time that a pod may take to end: preStop's sleep, the drain window, and the relay's own time-outs after that: 10 s for
webhook attempts and 2 s for committing their outcomes, 10 s for connections that are still being written, and some for the last
subscriber and the last commit.
*/}}
{{- define "autoplay-relay.leaving" -}}
{{- $drain := include "autoplay-relay.seconds" .Values.server.drain_window | int }}
{{- add .Values.preStopSleepSeconds $drain 30 }}
{{- end }}

{{- /* Restricted pod security: the container's part. */}}
{{- define "autoplay-relay.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- /* Probes on the listener that the public side cannot starve. A durable log may take minutes to recover. */}}
{{- define "autoplay-relay.probes" -}}
startupProbe:
  httpGet: {path: /healthz, port: probe}
  periodSeconds: 2
  failureThreshold: 150
livenessProbe:
  httpGet: {path: /healthz, port: probe}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
readinessProbe:
  httpGet: {path: /readyz, port: probe}
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: 2
{{- end }}
