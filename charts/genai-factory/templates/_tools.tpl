{{/* A pod with the command line. Takes (list CONTEXT COMMAND). */}}
{{- define "genai.toolsPod" -}}
{{- $context := index . 0 -}}
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
      - {name: GENAIFACTORY_CLUSTER__HTTP_URL, value: "http://{{ $context.Release.Name }}-gateway"}
      - {name: GENAIFACTORY_CLUSTER__GRPC_ADDRESS, value: "dns:///{{ $context.Release.Name }}-gateway:50051"}
      - {name: GENAIFACTORY_CLUSTER__RETRIEVER, value: "dns:///{{ $context.Release.Name }}-retriever:50051"}
      - {name: GENAIFACTORY_CLUSTER__MONITOR, value: "{{ include "genai.monitor" $context }}"}
      - {name: GENAIFACTORY_CLUSTER__TLS__CERTIFICATE, value: /etc/genaifactory-tls/tls.crt}
      - {name: GENAIFACTORY_CLUSTER__TLS__PRIVATE_KEY, value: /etc/genaifactory-tls/tls.key}
      - {name: GENAIFACTORY_CLUSTER__TLS__CA, value: /etc/genaifactory-tls/ca.crt}
      - {name: GENAIFACTORY_SECRETS_DIR, value: /etc/genaifactory-secrets}
    resources:
      {{- toYaml $context.Values.tools.resources | nindent 6 }}
    securityContext:
      {{- include "genai.containerSecurity" $context | nindent 6 }}
    volumeMounts:
      - {name: tmp, mountPath: /tmp}
      - {name: config, mountPath: /etc/genaifactory, readOnly: true}
      - {name: tls, mountPath: /etc/genaifactory-tls, readOnly: true}
      - {name: secrets, mountPath: /etc/genaifactory-secrets, readOnly: true}
volumes:
  - {name: tmp, emptyDir: {}}
  - name: config
    configMap:
      name: {{ include "genai.factory" $context }}
  - name: tls
    secret:
      secretName: {{ $context.Release.Name }}-tools-tls
      defaultMode: 0440
      items:
        - {key: tls.crt, path: tls.crt}
        - {key: tls.key, path: tls.key}
        - {key: ca.crt, path: ca.crt}
  - name: secrets
    projected:
      defaultMode: 0440
      sources:
        - secret: {name: {{ $context.Release.Name }}-context-key}
        {{- if $context.Values.apiKey.create }}
        - secret: {name: {{ $context.Release.Name }}-api-key}
        {{- end }}
{{- end }}
