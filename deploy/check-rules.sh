#!/usr/bin/env bash
# Checks the Prometheus configuration and rules, and runs the rules' own tests.
set -euo pipefail
cd "$(dirname "$0")/prometheus"
if ! command -v promtool >/dev/null 2>&1; then
  echo 'promtool is not installed (package prometheus): the rules were not checked'
  exit 0
fi
promtool check config prometheus.yml
promtool test rules rules/tests/*.yml
