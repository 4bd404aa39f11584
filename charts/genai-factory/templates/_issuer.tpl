{{/* The issuer's job. Argument: (list CONTEXT ARGUMENTS). */}}
{{- define "genai.issuerJob" -}}
{{- $context := index . 0 -}}
backoffLimit: 6
{{- /* The steps of a rotation, and the pauses between them. */}}
activeDeadlineSeconds: {{ add 600 (mul 3 $context.Values.certificates.propagationSeconds) $context.Values.global.callerTokenSeconds }}
template:
  metadata:
    labels:
      {{- include "genai.labels" $context | nindent 6 }}
      app.kubernetes.io/component: issuer
  spec:
    restartPolicy: OnFailure
    serviceAccountName: {{ $context.Release.Name }}-issuer
    automountServiceAccountToken: true
    enableServiceLinks: false
    {{- include "service.pullSecrets" $context | nindent 4 }}
    securityContext:
      {{- include "genai.podSecurity" $context | nindent 6 }}
    containers:
      - name: issuer
        image: {{ include "service.image" (list $context $context.Values.operator.image) }}
        imagePullPolicy: {{ $context.Values.operator.image.pullPolicy }}
        args: {{ toJson (concat (index . 1) (list "--config" "/etc/genaifactory/issuer.yaml")) }}
        resources:
          requests: {cpu: 10m, memory: 64Mi}
          limits: {memory: 256Mi}
        securityContext:
          {{- include "genai.containerSecurity" $context | nindent 10 }}
        volumeMounts:
          - {name: config, mountPath: /etc/genaifactory, readOnly: true}
          - {name: tmp, mountPath: /tmp}
    volumes:
      - name: config
        configMap:
          name: {{ $context.Release.Name }}-issuer
      - name: tmp
        emptyDir: {}
{{- end }}
