{{- define "modelcache.name" -}}
{{ .Values.fullnameOverride | default "modelcache" }}
{{- end }}

{{/* Of (root, component): what selects. */}}
{{- define "modelcache.selector" -}}
app.kubernetes.io/name: modelcache
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "modelcache.labels" -}}
{{ include "modelcache.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{- define "modelcache.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Of (root, choice): whether a policy is made. */}}
{{- define "modelcache.policy" -}}
{{- $wanted := toString .choice -}}
{{- if or (eq $wanted "true") (and (eq $wanted "auto") (semverCompare ">=1.30.0-0" .root.Capabilities.KubeVersion.Version)) -}}
true
{{- end -}}
{{- end }}

{{/* What cannot do anything but compute and use the network. */}}
{{- define "modelcache.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* A pod none of whose containers is root; the user is the image's. */}}
{{- define "modelcache.nonroot" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* The pod's account, for those of its containers that ask the API server. */}}
{{- define "modelcache.account" -}}
- name: account
  projected:
    defaultMode: 0440
    sources:
      - serviceAccountToken: {path: token, expirationSeconds: 3607}
      - configMap: {name: kube-root-ca.crt, items: [{key: ca.crt, path: ca.crt}]}
      - downwardAPI: {items: [{path: namespace, fieldRef: {fieldPath: metadata.namespace}}]}
{{- end }}

{{- define "modelcache.accountMount" -}}
- {name: account, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
{{- end }}

{{- define "modelcache.peersSecret" -}}
{{ .Values.peers.token.existingSecret | default (printf "%s-peers" (include "modelcache.name" .)) }}
{{- end }}

{{- define "modelcache.peersTlsSecret" -}}
{{ .Values.peers.tls.existingSecret | default (printf "%s-peers-tls" (include "modelcache.name" .)) }}
{{- end }}

{{- define "modelcache.webhookSecret" -}}
{{- if eq .Values.webhook.certificates "existing" -}}
{{ required "webhook.existingSecret is needed with webhook.certificates=existing" .Values.webhook.existingSecret }}
{{- else -}}
{{ include "modelcache.name" . }}-webhook-certificates
{{- end -}}
{{- end }}

{{/* Of (root, name, component): an authority of our own, by cert-manager. */}}
{{- define "modelcache.authority" -}}
apiVersion: cert-manager.io/v1
kind: Issuer
metadata:
  name: {{ .name }}-root
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "modelcache.labels" . | nindent 4 }}
spec:
  selfSigned: {}
---
apiVersion: cert-manager.io/v1
kind: Certificate
metadata:
  name: {{ .name }}-authority
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "modelcache.labels" . | nindent 4 }}
spec:
  isCA: true
  commonName: {{ .name }} authority
  secretName: {{ .name }}-authority
  duration: 87600h
  privateKey: {algorithm: ECDSA, size: 256}
  issuerRef: {kind: Issuer, name: {{ .name }}-root}
---
apiVersion: cert-manager.io/v1
kind: Issuer
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "modelcache.labels" . | nindent 4 }}
spec:
  ca:
    secretName: {{ .name }}-authority
{{- end }}
