{{- define "labels" -}}
app.kubernetes.io/name: dra-driver-nvidia-gpu
app.kubernetes.io/instance: {{ .top.Release.Name }}
app.kubernetes.io/version: {{ .top.Chart.AppVersion | quote }}
dra-driver-nvidia-gpu-component: {{ .component }}
helm.sh/chart: {{ .top.Chart.Name }}-{{ .top.Chart.Version }}
gpuready.io/stand-in: "true"
{{- end }}

{{- define "image" -}}
{{ .Values.image.repository }}:v{{ .Chart.AppVersion }}
{{- end }}
