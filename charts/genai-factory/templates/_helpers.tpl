{{- define "genai.labels" -}}
app.kubernetes.io/name: genai-factory
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: genai-factory
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* ConfigMap with factory.yaml. Used by the services' charts too, which have only the global values. */}}
{{- define "genai.factory" -}}
{{ .Values.global.existingFactory | default (printf "%s-factory" .Release.Name) }}
{{- end }}

{{/* Values of the first installed service, whose image checks factory.yaml, since its nodes need that image anyway. */}}
{{- define "genai.checking" -}}
{{- $names := splitList " " (include "genai.components" . | trim) }}
{{- toYaml (index .Values (first $names)) }}
{{- end }}

{{/* Secret with the database's URL; empty on SQLite. */}}
{{- define "genai.databaseSecret" -}}
{{- with .Values.global.postgresql }}
{{- if .existingSecret }}{{ .existingSecret }}{{ else if .enabled }}{{ $.Release.Name }}-database{{ end }}
{{- end }}
{{- end }}

{{/* Address of monitor: of each of its pods on PostgreSQL, of its Service on SQLite. */}}
{{- define "genai.monitor" -}}
dns:///{{ .Release.Name }}-monitor{{ if include "genai.databaseSecret" . }}-pods{{ end }}:50051
{{- end }}

{{- define "genai.qdrantUrl" -}}
{{- with .Values.global.qdrant }}
{{- if .url }}{{ .url }}{{ else if .enabled }}http://{{ $.Release.Name }}-qdrant:6333{{ end }}
{{- end }}
{{- end }}

{{/* Installed services. */}}
{{- define "genai.components" -}}
{{- range $name := list "gateway" "safety" "orchestrator" "retriever" "modelserver" "monitor" }}
{{- if (index $.Values $name).enabled }}{{ $name }} {{ end }}
{{- end }}
{{- end }}

{{/* Secret with the API key of the tools; empty: none. */}}
{{- define "genai.apiKeySecret" -}}
{{- if .Values.tools.apiKeySecret }}{{ .Values.tools.apiKeySecret }}{{ else if .Values.apiKey.create }}{{ .Release.Name }}-api-key{{ end }}
{{- end }}

{{/* Secret with the API key of the workflows; empty: none. */}}
{{- define "genai.pipelinesKeySecret" -}}
{{- if .Values.pipelines.apiKeySecret }}{{ .Values.pipelines.apiKeySecret }}{{ else if .Values.apiKey.create }}{{ .Release.Name }}-pipelines-key{{ end }}
{{- end }}

{{/* DNS names of a component's certificate. Argument: (list CONTEXT COMPONENT). */}}
{{- define "genai.names" -}}
{{- $context := index . 0 }}
{{- $names := list }}
{{- range $suffix := list "" "-pods" }}
{{- $name := printf "%s-%s%s" $context.Release.Name (index $ 1) $suffix }}
{{- $names = concat $names (list $name (printf "%s.%s" $name $context.Release.Namespace) (printf "%s.%s.svc" $name $context.Release.Namespace) (printf "%s.%s.svc.%s" $name $context.Release.Namespace $context.Values.global.clusterDomain)) }}
{{- end }}
{{- toJson $names }}
{{- end }}

{{/* Security context of the chart's own pods: the Pod Security Standard "restricted". */}}
{{- define "genai.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "genai.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
