{{- /*
A relay beside your own containers: a native sidecar, which is ready before they start and ends after them. The relay listens on
the pod's loopback, so the agent's URL is http://127.0.0.1:8080/stream/<product>, or http://[::1]:8080/… with
`addressFamily: IPv6`. Include the template under `initContainers`:

  initContainers:
    {{- include "autoplay-relay.sidecar" (index .Subcharts "autoplay-relay") | nindent 4 }}

The token is a variable and not a file, because without a configuration file the relay reads variables only.
*/}}
{{- define "autoplay-relay.sidecar" -}}
- name: autoplay-relay
  image: {{ include "autoplay-relay.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  restartPolicy: Always
  args: [--log-format, json, serve]
  env:
    - name: AUTOPLAY_STREAM_URL
      value: {{ required "sidecar.url is required: the connector's stream" .Values.sidecar.url | quote }}
    {{- with .Values.sidecar.token }}
    - name: AUTOPLAY_APP_UNKEY_TOKEN
      valueFrom:
        secretKeyRef: {name: {{ .existingSecret }}, key: {{ .key }}}
    {{- end }}
    - name: AUTOPLAY_RELAY__SERVER__PROBE_LISTEN # the kubelet connects to the pod's address
      value: {{ printf "%s:9091" (include "autoplay-relay.anyAddress" .) | quote }}
    {{- if eq .Values.addressFamily "IPv6" }}
    - name: AUTOPLAY_RELAY__SERVER__LISTEN
      value: "[::1]:8080"
    - name: AUTOPLAY_RELAY__SERVER__ADMIN_LISTEN
      value: "[::1]:9090"
    {{- end }}
  ports:
    - {name: probe, containerPort: 9091}
  {{- include "autoplay-relay.probes" . | nindent 2 }}
  securityContext:
    {{- include "autoplay-relay.securityContext" . | nindent 4 }}
  resources:
    {{- toYaml .Values.sidecar.resources | nindent 4 }}
{{- end }}
