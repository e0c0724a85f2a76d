#!/usr/bin/env bash
# deploy/prometheus/rules.yml as a PrometheusRule for Prometheus' operator:
#   deploy/kubernetes/rules.sh | kubectl apply -n vision -f -
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../prometheus"
cat <<'YAML'
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: camserve
  labels:
    app.kubernetes.io/name: camserve
spec:
YAML
sed 's/^/  /' rules.yml
