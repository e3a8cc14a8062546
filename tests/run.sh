#!/usr/bin/env bash
# Sets up .venv and runs every check: style, types, Dockerfile, fast tests, slow tests.
# COVERAGE=1 adds coverage. EDGEKD_DATA=FOLDER adds the tests on larger real data (FOLDER/mnist/*.gz).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

step() { printf '\n== %s\n' "$*" >&2; }

is_python() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
  local candidate
  for candidate in python3 python3.13 python3.12 python3.11; do
    if is_python "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11 or newer on the PATH (tried python3, python3.13, 3.12, 3.11)" >&2
  return 2
}

# pip's first line names its interpreter: a moved or half-made environment fails here.
is_healthy() { is_python .venv/bin/python && .venv/bin/pip --version >/dev/null 2>&1; }

make_environment() {
  local python
  python="$(find_python)"
  if ! "$python" -m venv --clear .venv; then
    echo "error: $python cannot make a virtual environment; install the venv module" >&2
    echo "  (Debian: apt-get install python3-venv) or make one yourself and run this again:" >&2
    echo "  $python -m pip install --user virtualenv && $python -m virtualenv .venv" >&2
    return 2
  fi
}

# What the tests run against and pip cannot install; without it they skip, and say so.
install_system_packages() {
  local missing
  missing="$(comm -23 <(sort tests/system-packages.txt) \
    <(dpkg-query -W -f '${Package} ${db:Status-Status}\n' | awk '$2 == "installed" { print $1 }' | sort))"
  [[ -z "$missing" ]] && return
  # shellcheck disable=SC2086
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing; } >/dev/null ||
    echo "warning: could not install $(xargs <<<"$missing"); the tests that need them are skipped" >&2
}

if [[ "$(id -u)" == 0 ]] && command -v apt-get >/dev/null; then
  step "system packages"
  install_system_packages
fi
if ! is_healthy; then
  step "environment"
  make_environment
fi
step "packages"
.venv/bin/pip install -q -c constraints.txt -e '.[test]'

export PATH="$PWD/.venv/bin:$PATH"
# Tests run side by side on few cores, and results depend on the number of threads.
export OMP_NUM_THREADS=1
[[ -t 1 ]] && export PY_COLORS=1

step "style"
ruff check
ruff format --check
step "types"
mypy
step "Dockerfile"
hadolint Dockerfile

logs="$(mktemp -d)"
trap 'rm -rf "$logs"' EXIT

# Of two workers, one whose process dies (native code, or the system) takes its tests with it, and
# pytest-xdist's replacement may wait for ever: stop at once, name the test, and begin once more. Failures
# alone are never tried again.
side_by_side() {
  local log="$1" attempt status
  shift
  for attempt in 1 2; do
    status=0
    # In the order of tests/conftest.py.
    timeout --foreground -k 30 40m python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
      --max-worker-restart=0 "$@" | tee "$log" ||
      status=$?
    if [[ "$attempt" == 2 || "$status" == 0 ]] || ! grep -q "^worker 'gw[0-9]*' crashed while running" "$log"; then
      return "$status"
    fi
    echo "warning: $(grep -m 1 "^worker 'gw" "$log"): all of them once more" >&2
  done
}

# Files that name a marker (tests/conftest.py sees to it that they do): to import all others takes longer
# than what is wanted of them.
marked() { grep -rl --include='test_*.py' "pytest\.mark\.$1" tests | sort; }

step "fast tests"
coverage=()
[[ -n "${COVERAGE:-}" ]] && coverage=(--cov --cov-report=term)
side_by_side "$logs/fast" -m "not slow and not timing" "${coverage[@]}" --durations=25
step "slow tests"
mapfile -t files < <(marked slow)
side_by_side "$logs/slow" -m "slow and not timing" --timeout=900 --durations=10 "${files[@]}"
step "timings, alone"
mapfile -t files < <(marked timing)
python -m pytest -m timing --timeout=900 "${files[@]}" | tee "$logs/timing"

# pytest's own closing lines, last.
tail -qn 1 "$logs/fast" "$logs/slow" "$logs/timing"
