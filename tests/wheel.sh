#!/usr/bin/env bash
# The wheel alone, in an empty environment: a demo, the page, and what else ships with it (make test-wheel; a few minutes, mostly installing).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
wheel=$(ls "$root"/dist/*.whl)
work=$(mktemp -d)
trap 'kill "${page:-}" 2>/dev/null || true; rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --disable-pip-version-check --constraint "$root/constraints.txt" "$wheel[app]"
export PATH="$work/env/bin:$PATH"
unset PYTHONPATH
bezierdistill --version
bezierdistill doctor
bezierdistill demo --fast --out demo
test -s demo/report.html
port=$(python -c "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); print(s.getsockname()[1])")
bezierdistill app --port "$port" > page.log 2>&1 &
page=$!
for _ in $(seq 90); do
  kill -0 "$page" || { cat page.log; exit 1; }
  if python -c "import sys, urllib.request as u; sys.exit(b'bezierdistill' not in u.urlopen('http://127.0.0.1:$port', timeout=5).read())" 2> /dev/null; then
    echo "the wheel alone: demo and page work"
    exit 0
  fi
  sleep 1
done
cat page.log
exit 1
