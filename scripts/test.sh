#!/bin/sh
# Everything that must pass, in a .venv of its own: format, linter, types, tests. Arguments go to pytest.
set -eu
cd "$(dirname "$0")/.."
extra=test
. scripts/setup.sh

# The tests' networks are tiny: a second thread would cost more than it brings.
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export OMP_NUM_THREADS
# What is compiled to bytecode is kept: some thirty processes are started, and each would compile all of it again.
unset PYTHONDONTWRITEBYTECODE

.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/mypy
.venv/bin/python -m pytest "$@"
