{{/* RELEASE-COMPONENT: the name of the service's resources; the component is the alias of the chart. */}}
{{- define "service.name" -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "service.selector" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: {{ .Chart.Name }}
{{- end }}

{{- define "service.labels" -}}
app.kubernetes.io/name: genai-factory
{{ include "service.selector" . }}
app.kubernetes.io/part-of: genai-factory
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Reference of an image. Argument: (list CONTEXT IMAGE). */}}
{{- define "service.image" -}}
{{- $context := index . 0 }}
{{- $image := index . 1 }}
{{- printf "%s%s" $context.Values.global.imageRegistry $image.repository }}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default $context.Values.global.imageTag | default $context.Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "service.pullSecrets" -}}
{{- with .Values.global.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* The URI in the certificate of a component, its identity. Argument: (list CONTEXT COMPONENT). */}}
{{- define "service.identity" -}}
{{- $context := index . 0 }}
{{- printf "spiffe://%s/ns/%s/sa/%s-%s" $context.Values.global.trustDomain $context.Release.Namespace $context.Release.Name (index . 1) }}
{{- end }}

{{- define "service.callers" -}}
{{- $identities := list }}
{{- range .Values.callers }}
{{- $identities = append $identities (include "service.identity" (list $ .)) }}
{{- end }}
{{- toJson $identities }}
{{- end }}

{{/* Environment variables that the chart sets; `env` overrides them. */}}
{{- define "service.environment" -}}
GENAIFACTORY_SERVER__DRAIN_SECONDS: {{ .Values.drainSeconds | quote }}
GENAIFACTORY_SERVER__MAX_CONNECTION_AGE_SECONDS: {{ .Values.maxConnectionAgeSeconds | quote }}
GENAIFACTORY_TELEMETRY__LOG_LEVEL: {{ .Values.global.logLevel }}
{{- with .Values.global.otlpEndpoint }}
GENAIFACTORY_TELEMETRY__OTLP_ENDPOINT: {{ . }}
{{- end }}
{{- if .Values.secrets }}
GENAIFACTORY_SECRETS_DIR: /etc/genaifactory-secrets
{{- end }}
{{- if .Values.tls.enabled }}
{{- range $prefix := ternary (list "SERVER" "UPSTREAMS") (list "SERVER") .Values.tls.upstreams }}
GENAIFACTORY_{{ $prefix }}__TLS__CERTIFICATE: /etc/genaifactory-tls/tls.crt
GENAIFACTORY_{{ $prefix }}__TLS__PRIVATE_KEY: /etc/genaifactory-tls/tls.key
GENAIFACTORY_{{ $prefix }}__TLS__CA: /etc/genaifactory-tls/ca.crt
{{- end }}
{{- if .Values.callers }}
GENAIFACTORY_SERVER__CALLERS: {{ include "service.callers" . | quote }}
{{- end }}
{{- end }}
{{- end }}
