#!/usr/bin/env bash
# deploy/prometheus/rules.yml as a PrometheusRule for Prometheus' operator:
#   deploy/kubernetes/rules.sh | kubectl apply -n vision -f -
# CAMSERVE_RUNBOOKS: the address of the page that alerts lead to, where you publish the documentation and Prometheus has no
# external label camserve_runbooks.
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
page=http://127.0.0.1:8000/operate/alerts.html
sed -e 's/^/  /' -e "s|$page|${CAMSERVE_RUNBOOKS:-$page}|" rules.yml
