#!/usr/bin/env bash
# deploy/prometheus/rules.yml as a PrometheusRule for Prometheus' operator:
#   deploy/kubernetes/rules.sh | kubectl apply -n vision -f -
# CAMSERVE_RUNBOOKS: the address of the page that alerts lead to, where you publish the documentation.
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
sed -e 's/^/  /' -e "s|docs/operate/alerts.md#|${CAMSERVE_RUNBOOKS:-docs/operate/alerts.md}#|" rules.yml
