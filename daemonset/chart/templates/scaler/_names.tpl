{{- define "modelcache.scalerSecret" -}}
{{- if eq .Values.scaler.certificates "existing" -}}
{{ required "scaler.existingSecret is needed with scaler.certificates=existing" .Values.scaler.existingSecret }}
{{- else -}}
{{ include "modelcache.name" . }}-scaler-certificates
{{- end -}}
{{- end }}

{{/* Whether the APIService is ours to make: there is one in a cluster. */}}
{{- define "modelcache.ownsExternalMetrics" -}}
{{- $wanted := toString .Values.scaler.externalMetrics.apiService -}}
{{- if and .Values.scaler.enabled .Values.scaler.externalMetrics.enabled (ne $wanted "false") -}}
{{- $there := lookup "apiregistration.k8s.io/v1" "APIService" "" "v1beta1.external.metrics.k8s.io" -}}
{{- $mine := or (not $there) (and $there.spec.service (eq $there.spec.service.namespace .Release.Namespace) (eq $there.spec.service.name (printf "%s-scaler" (include "modelcache.name" .)))) -}}
{{- if or (eq $wanted "true") $mine -}}
true
{{- end -}}
{{- end -}}
{{- end }}
