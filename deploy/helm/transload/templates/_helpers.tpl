{{- define "transload.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "transload.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "transload.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Labels that select pods: (list . "proxy"). They never change. */}}
{{- define "transload.selector" -}}
{{- $top := index . 0 -}}
app.kubernetes.io/name: {{ include "transload.name" $top }}
app.kubernetes.io/instance: {{ $top.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "transload.labels" -}}
{{- $top := index . 0 -}}
{{ include "transload.selector" . }}
app.kubernetes.io/version: {{ $top.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $top.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $top.Chart.Name $top.Chart.Version | replace "+" "_" }}
{{- with $top.Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "transload.image" -}}
{{- $image := .Values.image -}}
{{- if not $image.repository -}}
{{- fail "image.repository is not set: push the image to your registry, such as myregistry.azurecr.io/transload" -}}
{{- end -}}
{{- $first := first (splitList "/" $image.repository) -}}
{{- $registry := ternary $first "docker.io" (or (contains "." $first) (contains ":" $first)) -}}
{{- if and .Values.nodeMirror.enabled (has $registry .Values.nodeMirror.registries) -}}
{{- fail (printf "image.repository is on %s, which nodes reach through the proxy: the proxy's own image can't depend on it" $registry) -}}
{{- end -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ default .Chart.AppVersion $image.tag }}
{{- end -}}
{{- end -}}

{{- define "transload.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "transload.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "transload.principalSecret" -}}
{{- $principal := .Values.identity.servicePrincipal -}}
{{- if $principal.existingSecret -}}
{{- $principal.existingSecret -}}
{{- else if $principal.clientId -}}
{{- printf "%s-azure" (include "transload.fullname" .) -}}
{{- end -}}
{{- end -}}

{{/* The same, unless another identity counts. */}}
{{- define "transload.principalSecretInUse" -}}
{{- if not .Values.identity.workloadIdentity.clientId -}}
{{- include "transload.principalSecret" . -}}
{{- end -}}
{{- end -}}

{{/* Labels that the identity needs on a pod. */}}
{{- define "transload.identityLabels" -}}
{{- if .Values.identity.workloadIdentity.clientId -}}
azure.workload.identity/use: "true"
{{- end -}}
{{- end -}}

{{/* What a container that talks to registries has in its environment. */}}
{{- define "transload.identityEnv" -}}
{{- if include "transload.principalSecretInUse" . }}
# Files, since a variable never changes: the program reads them again, so a rotated secret counts without a restart.
- name: TRANSLOAD_AZURE_PRINCIPAL
  value: /run/transload/principal
{{- end }}
{{- if .Values.identity.pullSecret }}
- name: TRANSLOAD_AUTH_FILE
  value: /run/transload/registries/.dockerconfigjson
{{- end }}
- name: HOME
  value: /tmp
{{- end -}}

{{- define "transload.identityMounts" -}}
- name: tmp
  mountPath: /tmp
{{- if include "transload.principalSecretInUse" . }}
- name: principal
  mountPath: /run/transload/principal
  readOnly: true
{{- end }}
{{- if .Values.identity.pullSecret }}
- name: registries
  mountPath: /run/transload/registries
  readOnly: true
{{- end }}
{{- end -}}

{{- define "transload.identityVolumes" -}}
- name: tmp
  emptyDir: {sizeLimit: 64Mi}
{{- with include "transload.principalSecretInUse" . }}
- name: principal
  secret:
    secretName: {{ . }}
    defaultMode: 0440
    items:
      {{- range list "AZURE_CLIENT_ID" "AZURE_TENANT_ID" "AZURE_CLIENT_SECRET" }}
      - {key: {{ . }}, path: {{ . }}}
      {{- end }}
{{- end }}
{{- with .Values.identity.pullSecret }}
- name: registries
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- end -}}

{{- define "transload.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Whether the proxy has a file: flags have no users, no rules, and no write-back of single upstreams. */}}
{{- define "transload.proxyHasFile" -}}
{{- $proxy := .Values.proxy -}}
{{- $needs := false -}}
{{- range $proxy.upstreams -}}{{- if or .writeBack .allow .deny -}}{{- $needs = true -}}{{- end -}}{{- end -}}
{{- if or $proxy.config $proxy.users.existingSecret $needs -}}true{{- end -}}
{{- end -}}

{{/* The proxy's configuration file: proxy.config, and what the other values say where that is silent. */}}
{{- define "transload.proxyConfig" -}}
{{- $proxy := .Values.proxy -}}
{{- $config := deepCopy $proxy.config -}}
{{- if and $config.listen $proxy.users.existingSecret -}}
{{- fail "proxy.users: proxy.config.listen says all of where the proxy listens; name the Secret in proxy.configSecrets, and its file there" -}}
{{- end -}}
{{- if not $config.listen -}}
{{- $listen := list (dict "http" "0.0.0.0:5000") -}}
{{- with $proxy.users -}}
{{- if .existingSecret -}}
{{- $address := printf "0.0.0.0:%d" (int .port) -}}
{{- $users := dict "users-file" (printf "/etc/transload/users/%s" .key) -}}
{{- if .tlsSecret -}}
{{- $tls := dict "https" $address "certificate" "/etc/transload/tls/tls.crt" "key" "/etc/transload/tls/tls.key" -}}
{{- $listen = append $listen (merge $tls $users) -}}
{{- else -}}
{{- $listen = append $listen (merge (dict "http" $address) $users) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $_ := set $config "listen" $listen -}}
{{- end -}}
{{- if not (hasKey $config "listen-admin") -}}
{{- $_ := set $config "listen-admin" "127.0.0.1:9091" -}}
{{- end -}}
{{- $_ := set $config "cache" (merge (default dict $config.cache) (dict "dir" "/var/cache/transload" "size" $proxy.cache.size)) -}}
{{- $stop := dict "shutdown-delay" (int (include "transload.proxyShutdownDelay" .)) "drain-timeout" (int (include "transload.proxyDrainTimeout" .)) -}}
{{- $_ := set $config "limits" (merge (default dict $config.limits) $stop) -}}
{{- if not $config.upstreams -}}
{{- $upstreams := list -}}
{{- range $proxy.upstreams -}}
{{- $one := dict "name" .name -}}
{{- with .tiers -}}{{- $_ := set $one "tiers" . -}}{{- end -}}
{{- with .allow -}}{{- $_ := set $one "allow" . -}}{{- end -}}
{{- with .deny -}}{{- $_ := set $one "deny" . -}}{{- end -}}
{{- if .writeBack -}}
{{- if lt (len (default list .tiers)) 2 -}}
{{- fail (printf "proxy.upstreams: writeBack of %s needs two tiers: it copies into the first one what only a later one has" .name) -}}
{{- end -}}
{{- $_ := set $one "write-back" true -}}
{{- if $proxy.writeBack.existingSecret -}}
{{- $_ := set $one "write-back-auth-file" "/run/transload/write-back/.dockerconfigjson" -}}
{{- end -}}
{{- end -}}
{{- $upstreams = append $upstreams $one -}}
{{- end -}}
{{- $_ := set $config "upstreams" $upstreams -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}

{{/* Whether port 5000 answers everyone for everything: without authentication, and with an upstream without `allow`. */}}
{{- define "transload.httpIsOpen" -}}
{{- if include "transload.proxyHasFile" . -}}
{{- $config := include "transload.proxyConfig" . | fromYaml -}}
{{- $anyone := false -}}
{{- range $config.listen -}}
{{- if hasSuffix ":5000" (default (default "" .https) .http) -}}
{{- if not (or (get . "users-file") (get . "token-file") (get . "client-ca")) -}}{{- $anyone = true -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- $anything := false -}}
{{- range $config.upstreams -}}{{- if not .allow -}}{{- $anything = true -}}{{- end -}}{{- end -}}
{{- if and $anyone $anything -}}true{{- end -}}
{{- else -}}
true
{{- end -}}
{{- end -}}

{{/* Where port 5000 can be reached from outside the cluster, if it can. */}}
{{- define "transload.httpIsOutside" -}}
{{- $proxy := .Values.proxy -}}
{{- if and (eq $proxy.kind "DaemonSet") $proxy.hostPort (not (or (hasPrefix "127." $proxy.hostIP) (eq "::1" $proxy.hostIP))) -}}
proxy.hostIP {{ default "0.0.0.0" $proxy.hostIP }}
{{- else if and (ne $proxy.service.type "ClusterIP") (not (include "transload.usersAlone" .)) -}}
proxy.service.type {{ $proxy.service.type }}
{{- end -}}
{{- end -}}

{{/* Whether the Service of another type than ClusterIP has the users' port only: port 5000 asks for no password. */}}
{{- define "transload.usersAlone" -}}
{{- $proxy := .Values.proxy -}}
{{- if and (ne $proxy.service.type "ClusterIP") $proxy.users.existingSecret (not $proxy.acceptOpenAccess) -}}
{{- include "transload.httpIsOpen" . -}}
{{- end -}}
{{- end -}}

{{/* Refuses to let everyone outside the cluster pull everything. */}}
{{- define "transload.refuseOpenAccess" -}}
{{- $outside := include "transload.httpIsOutside" . -}}
{{- if and $outside (not .Values.proxy.acceptOpenAccess) (include "transload.httpIsOpen" .) -}}
{{- $users := ternary "" "set proxy.users.existingSecret, " (hasPrefix "proxy.hostIP" $outside) -}}
{{- fail (printf "%s: whoever can reach it could pull everything that the proxy's identity can pull; %sgive each of proxy.upstreams an allow list, keep the proxy inside the cluster, or accept it: proxy.acceptOpenAccess=true" $outside $users) -}}
{{- end -}}
{{- end -}}

{{/* Whether the kubelet itself can wait before it stops a container: PodLifecycleSleepAction, on since Kubernetes 1.30.
     The image has no shell to sleep in. */}}
{{- define "transload.kubeletSleeps" -}}
{{- if and (semverCompare ">=1.30-0" .Capabilities.KubeVersion.Version) (gt (int .Values.proxy.shutdownDelaySeconds) 0) -}}true{{- end -}}
{{- end -}}

{{/* Seconds for which the proxy itself goes on accepting connections: none where the kubelet waits. */}}
{{- define "transload.proxyShutdownDelay" -}}
{{- ternary 0 (int .Values.proxy.shutdownDelaySeconds) (eq (include "transload.kubeletSleeps" .) "true") -}}
{{- end -}}

{{/* Seconds for requests that go on: what the delay leaves of the grace period, less some for the end itself. */}}
{{- define "transload.proxyDrainTimeout" -}}
{{- $left := sub (int .Values.proxy.terminationGracePeriodSeconds) (add (int .Values.proxy.shutdownDelaySeconds) 3) -}}
{{- if lt $left 1 -}}
{{- fail "proxy.terminationGracePeriodSeconds must be more than proxy.shutdownDelaySeconds and 3 seconds" -}}
{{- end -}}
{{- $left -}}
{{- end -}}

{{/* Where a node asks the proxy. */}}
{{- define "transload.proxyURL" -}}
{{- if .Values.nodeMirror.proxyURL -}}
{{- .Values.nodeMirror.proxyURL -}}
{{- else if not .Values.proxy.enabled -}}
{{- fail "nodeMirror.proxyURL is not set, and there is no proxy" -}}
{{- else if eq .Values.proxy.kind "DaemonSet" -}}
{{- printf "http://%s:%d" .Values.proxy.hostIP (int .Values.proxy.hostPort) -}}
{{- else if and .Values.proxy.service.nodePort (ne .Values.proxy.service.type "ClusterIP") (not (include "transload.usersAlone" .)) -}}
{{- printf "http://127.0.0.1:%d" (int .Values.proxy.service.nodePort) -}}
{{- else if .Values.proxy.service.clusterIP -}}
{{- printf "http://%s:%d" .Values.proxy.service.clusterIP (int .Values.proxy.service.port) -}}
{{- else -}}
{{- fail "nodes don't ask the cluster's DNS: with a Deployment set proxy.service.nodePort, proxy.service.clusterIP or nodeMirror.proxyURL" -}}
{{- end -}}
{{- end -}}
