#!/usr/bin/env bash
# Looks for known vulnerabilities in what the binary calls. The vulnerability database is on the network:
# where it is out of reach the check says so and passes. Exit code 3 of govulncheck means it found one.
set -uo pipefail
cd "$(dirname "$0")/.."
output=$(timeout 120 go tool govulncheck ./... 2>&1)
code=$?
case $code in
  0) echo 'govulncheck: no known vulnerability is called' ;;
  3) printf '%s\n' "$output"; exit 1 ;;
  *) echo "govulncheck could not run (code $code): the vulnerability database is out of reach, or the build fails" ;;
esac
