{{/* A pod with the command line, a client of the gateway with its CA certificate and an API key. Argument: (list CONTEXT COMMAND). */}}
{{- define "genai.toolsPod" -}}
{{- $context := index . 0 -}}
{{- $secret := include "genai.apiKeySecret" $context -}}
serviceAccountName: {{ $context.Release.Name }}-tools
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: 5
{{- include "service.pullSecrets" $context }}
securityContext:
  {{- include "genai.podSecurity" $context | nindent 2 }}
containers:
  - name: tools
    image: {{ include "service.image" (list $context $context.Values.tools.image) }}
    imagePullPolicy: {{ $context.Values.tools.image.pullPolicy }}
    command: {{ toJson (index . 1) }}
    env:
      {{- include "genai.clientEnvironment" (list $context $secret) | nindent 6 }}
    resources:
      {{- toYaml $context.Values.tools.resources | nindent 6 }}
    securityContext:
      {{- include "genai.containerSecurity" $context | nindent 6 }}
    volumeMounts:
      {{- include "genai.clientMounts" (list $context $secret) | nindent 6 }}
      {{- if $context.Values.pipelines.enabled }}
      - {name: pipelines, mountPath: /pipelines}
      {{- end }}
volumes:
  {{- include "genai.clientVolumes" (list $context $secret) | nindent 2 }}
  {{- if $context.Values.pipelines.enabled }}
  - name: pipelines
    persistentVolumeClaim:
      claimName: {{ include "genai.pipelinesClaim" $context }}
  {{- end }}
{{- end }}

{{/* What a client of the gateway is given: its address, its CA certificate and an API key, whose Secret may be "".
Argument of the three: (list CONTEXT SECRET). */}}
{{- define "genai.clientEnvironment" -}}
{{- $context := index . 0 -}}
{{- $secret := index . 1 -}}
- {name: GENAIFACTORY_CLUSTER__HTTP_URL, value: "http://{{ $context.Release.Name }}-gateway"}
- {name: GENAIFACTORY_CLUSTER__GRPC_ADDRESS, value: "dns:///{{ $context.Release.Name }}-gateway:50051"}
- {name: GENAIFACTORY_CLUSTER__TLS__CA, value: /etc/genaifactory-tls/ca.crt}
{{- if $secret }}
- {name: GENAIFACTORY_SECRETS_DIR, value: /etc/genaifactory-secrets}
{{- end }}
{{- with include "genai.mlflowUrl" $context }}
- {name: MLFLOW_TRACKING_URI, value: {{ . | quote }}}
{{- end }}
{{- end }}

{{- define "genai.clientMounts" -}}
{{- $secret := index . 1 -}}
- {name: tmp, mountPath: /tmp}
- {name: config, mountPath: /etc/genaifactory, readOnly: true}
- {name: tls, mountPath: /etc/genaifactory-tls, readOnly: true}
{{- if $secret }}
- {name: secrets, mountPath: /etc/genaifactory-secrets, readOnly: true}
{{- end }}
{{- end }}

{{- define "genai.clientVolumes" -}}
{{- $context := index . 0 -}}
{{- $secret := index . 1 -}}
- {name: tmp, emptyDir: {}}
- name: config
  configMap:
    name: {{ include "genai.factory" $context }}
- name: tls
  secret:
    secretName: {{ $context.Release.Name }}-gateway-tls
    defaultMode: 0440
    # The CA certificate alone, and no private key.
    items:
      - {key: ca.crt, path: ca.crt}
{{- if $secret }}
- name: secrets
  secret:
    secretName: {{ $secret }}
    defaultMode: 0440
    items:
      - {key: GENAIFACTORY_API_KEY, path: GENAIFACTORY_API_KEY}
{{- end }}
{{- end }}

{{- define "genai.pipelinesClaim" -}}
{{ .Values.pipelines.persistence.existingClaim | default (printf "%s-pipelines" .Release.Name) }}
{{- end }}
