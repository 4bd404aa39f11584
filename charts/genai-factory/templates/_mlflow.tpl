{{/* Address of MLflow, where workflows record runs and register adapters; empty: none. */}}
{{- define "genai.mlflowUrl" -}}
{{- with .Values.mlflow }}
{{- if .url }}{{ .url }}{{ else if .enabled }}http://{{ $.Release.Name }}-mlflow:5000{{ end }}
{{- end }}
{{- end }}

{{/* Secret with the URL of the built-in PostgreSQL, in which MLflow then has a database of its own; empty: it has not. */}}
{{- define "genai.mlflowDatabase" -}}
{{- if and .Values.mlflow.enabled .Values.global.postgresql.enabled }}{{ include "genai.databaseSecret" . }}{{ end }}
{{- end }}

{{/* What the two containers with MLflow's image share. */}}
{{- define "genai.mlflowContainer" -}}
{{- $name := printf "%s-mlflow" .Release.Name -}}
image: {{ include "service.image" (list . .Values.mlflow.image) }}
imagePullPolicy: {{ .Values.mlflow.image.pullPolicy }}
env:
  # Names by which it may be asked; through kubectl port-forward it is 127.0.0.1. Another name is a page of a browser
  # that was led here (DNS rebinding).
  {{- $hosts := list "127.0.0.1:*" "localhost:*" }}
  {{- range list $name (printf "%s.%s" $name .Release.Namespace) (printf "%s.%s.svc" $name .Release.Namespace) (printf "%s.%s.svc.%s" $name .Release.Namespace .Values.global.clusterDomain) }}
  {{- $hosts = append $hosts (printf "%s:5000" .) }}
  {{- end }}
  - {name: MLFLOW_SERVER_ALLOWED_HOSTS, value: {{ join "," $hosts | quote }}}
  {{- with .Values.mlflow.artifacts }}
  - {name: MLFLOW_ARTIFACTS_DESTINATION, value: {{ . | quote }}}
  {{- end }}
  {{- if include "genai.mlflowDatabase" . }}
  - name: MLFLOW_BACKEND_STORE_URI
    valueFrom: {secretKeyRef: {name: {{ $name }}, key: MLFLOW_BACKEND_STORE_URI}}
  {{- end }}
{{- with .Values.mlflow.existingSecret }}
envFrom:
  - secretRef: {name: {{ . }}}
{{- end }}
resources:
  {{- toYaml .Values.mlflow.resources | nindent 2 }}
securityContext:
  {{- include "genai.containerSecurity" . | nindent 2 }}
volumeMounts:
  - {name: data, mountPath: /data}
  - {name: tmp, mountPath: /tmp}
{{- end }}
