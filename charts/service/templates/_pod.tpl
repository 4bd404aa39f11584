{{/* The pod template of both kinds. */}}
{{- define "service.pod" -}}
metadata:
  labels:
    {{- include "service.labels" . | nindent 4 }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    kubectl.kubernetes.io/default-container: {{ .Chart.Name }}
    {{- if eq .Values.global.scrape "annotations" }}
    prometheus.io/scrape: "true"
    prometheus.io/port: "9090"
    {{- end }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "service.name" . }}
  automountServiceAccountToken: {{ .Values.serviceAccount.automountToken }}
  # No environment variables such as NAME_PORT for each Service of the namespace.
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ add .Values.preStopSeconds .Values.drainSeconds 15 }}
  {{- with include "service.pullSecrets" . }}
  {{- . | nindent 2 }}
  {{- end }}
  securityContext:
    {{- toYaml .Values.podSecurityContext | nindent 4 }}
  {{- with .Values.topologySpread }}
  topologySpreadConstraints:
    {{- range . }}
    - maxSkew: 1
      topologyKey: {{ . }}
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "service.selector" $ | nindent 10 }}
    {{- end }}
  {{- end }}
  {{- range $name, $value := pick .Values "nodeSelector" "tolerations" "affinity" "priorityClassName" "runtimeClassName" }}
  {{- with $value }}
  {{ $name }}:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- end }}
  containers:
    - name: {{ .Chart.Name }}
      image: {{ include "service.image" (list . .Values.image) }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      ports:
        - {name: grpc, containerPort: 50051, protocol: TCP}
        - {name: health, containerPort: 50052, protocol: TCP}
        - {name: metrics, containerPort: 9090, protocol: TCP}
        {{- if .Values.service.http }}
        - {name: http, containerPort: 8080, protocol: TCP}
        {{- end }}
      env:
        {{- range $name, $value := merge (dict) .Values.env (include "service.environment" . | fromYaml) }}
        {{- with tpl (toString $value) $ }}
        - name: {{ $name }}
          value: {{ . | quote }}
        {{- end }}
        {{- end }}
        {{- with .Values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      # The kubelet's gRPC probes have no TLS: health has a port of its own, in no Service.
      startupProbe:
        grpc: {port: 50052, service: liveness}
        periodSeconds: 1
        timeoutSeconds: 5
        failureThreshold: {{ .Values.startup.seconds }}
      livenessProbe:
        grpc: {port: 50052, service: liveness}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 3
      readinessProbe:
        grpc: {port: 50052}
        periodSeconds: 2
        timeoutSeconds: 5
        failureThreshold: 2
      {{- with .Values.preStopSeconds }}
      lifecycle:
        preStop:
          sleep: {seconds: {{ . }}}
      {{- end }}
      {{- with .Values.resources }}
      resources:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      securityContext:
        {{- toYaml .Values.securityContext | nindent 8 }}
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
        - {name: data, mountPath: /data}
        {{- if .Values.configMap }}
        - {name: config, mountPath: /etc/genaifactory, readOnly: true}
        {{- end }}
        {{- if .Values.tls.enabled }}
        - {name: tls, mountPath: /etc/genaifactory-tls, readOnly: true}
        {{- end }}
        {{- if .Values.secrets }}
        - {name: secrets, mountPath: /etc/genaifactory-secrets, readOnly: true}
        {{- end }}
        {{- with .Values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: tmp
      emptyDir: {}
    {{- if not (eq (include "service.persistent" .) "true") }}
    - name: data
      emptyDir: {}
    {{- end }}
    {{- with .Values.configMap }}
    - name: config
      configMap:
        name: {{ tpl . $ }}
    {{- end }}
    {{- if .Values.tls.enabled }}
    - name: tls
      secret:
        secretName: {{ tpl .Values.tls.secret . }}
        defaultMode: 0440
        # Listed, so that a pod waits until its certificate is issued.
        items:
          - {key: tls.crt, path: tls.crt}
          - {key: tls.key, path: tls.key}
          - {key: ca.crt, path: ca.crt}
    {{- end }}
    {{- with .Values.secrets }}
    - name: secrets
      projected:
        defaultMode: 0440
        sources:
          {{- range . }}
          {{- with tpl . $ }}
          - secret:
              name: {{ . }}
          {{- end }}
          {{- end }}
    {{- end }}
    {{- with .Values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{- define "service.persistent" -}}
{{- and (eq .Values.kind "StatefulSet") .Values.persistence.enabled }}
{{- end }}
