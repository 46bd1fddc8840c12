{{- define "labels" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/part-of: cilium
app.kubernetes.io/version: {{ .top.Chart.AppVersion | quote }}
helm.sh/chart: {{ .top.Chart.Name }}-{{ .top.Chart.Version }}
gpuready.io/stand-in: "true"
{{- end }}

{{- define "config" -}}
cni-exclusive: {{ .Values.cni.exclusive | quote }}
ipam: {{ .Values.ipam.mode | quote }}
cluster-pool-ipv4-cidr: {{ join " " .Values.ipam.operator.clusterPoolIPv4PodCIDRList | quote }}
cluster-pool-ipv4-mask-size: {{ .Values.ipam.operator.clusterPoolIPv4MaskSize | quote }}
kube-proxy-replacement: {{ .Values.kubeProxyReplacement | toString | quote }}
routing-mode: {{ .Values.routingMode | default "tunnel" | quote }}
tunnel-protocol: {{ .Values.tunnelProtocol | default "vxlan" | quote }}
mtu: {{ .Values.MTU | quote }}
agent-not-ready-taint-key: node.cilium.io/agent-not-ready
{{- end }}

{{- define "api-server" -}}
{{- if .Values.k8sServiceHost }}
env:
  - name: KUBERNETES_SERVICE_HOST
    value: {{ .Values.k8sServiceHost | quote }}
  - name: KUBERNETES_SERVICE_PORT
    value: {{ .Values.k8sServicePort | toString | quote }}
{{- end }}
{{- end }}
