{{- /* The pod of a tier. In: root, tier. */}}
{{- define "autoplay-relay.pod" -}}
{{- $root := .root }}
{{- $values := $root.Values }}
{{- $tier := ternary $values.edge $values.leaves (eq .tier "edge") }}
{{- $isDurable := and (eq .tier "edge") $values.edge.persistence.enabled }}
{{- $secrets := include "autoplay-relay.secretSources" . | fromYamlArray -}}
metadata:
  labels:
    {{- with $tier.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- include "autoplay-relay.labels" . | nindent 4 }}
  annotations:
    checksum/config: {{ include "autoplay-relay.waiting" . | sha256sum }}
    {{- with $tier.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- with $values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ $tier.terminationGracePeriodSeconds | default (include "autoplay-relay.leaving" $root) }}
  securityContext:
    runAsNonRoot: true
    fsGroup: 65532
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile:
      type: RuntimeDefault
  {{- with $tier.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- if eq .tier "leaf" }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "autoplay-relay.selector" . | nindent 10 }}
  {{- end }}
  containers:
    - name: relay
      image: {{ include "autoplay-relay.image" $root }}
      imagePullPolicy: {{ $values.image.pullPolicy }}
      args: [--log-format, json, serve, --config, /etc/autoplay-relay/config/relay.toml]
      {{- with $tier.extraEnv }}
      env:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        - {name: http, containerPort: 8080}
        - {name: admin, containerPort: 9090}
        - {name: probe, containerPort: 9091}
      {{- include "autoplay-relay.probes" . | nindent 6 }}
      lifecycle:
        preStop:
          sleep: {seconds: {{ $values.preStopSleepSeconds }}}
      securityContext:
        {{- include "autoplay-relay.securityContext" . | nindent 8 }}
      resources:
        {{- toYaml $tier.resources | nindent 8 }}
      volumeMounts:
        - {name: config, mountPath: /etc/autoplay-relay/config, readOnly: true}
        {{- if $secrets }}
        - {name: secrets, mountPath: /etc/autoplay-relay/secrets, readOnly: true}
        {{- end }}
        {{- if $isDurable }}
        - {name: data, mountPath: /var/lib/autoplay-relay}
        {{- end }}
        {{- with $tier.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: config
      configMap:
        name: {{ include "autoplay-relay.fullname" $root }}-{{ .tier }}
    {{- if $secrets }}
    - name: secrets
      projected:
        # Readable by the group alone, which fsGroup makes the relay's.
        defaultMode: 0440
        sources:
          {{- toYaml $secrets | nindent 10 }}
    {{- end }}
    {{- with $tier.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with $tier.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $tier.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $tier.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
