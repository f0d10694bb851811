# Sourced by the scripts beside it, in the checkout's top folder: sets up .venv with the pinned packages.
#   extra= ; . scripts/setup.sh
# A second run has nothing to do and takes no time. `extra=test` adds what the tests need.

if [ ! -x .venv/bin/python ] || ! .venv/bin/python -c "" 2>/dev/null; then
    for python in python3.11 python3; do
        if "$python" -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null; then
            break
        fi
        python=
    done
    if [ -z "$python" ]; then
        echo "$0: Python 3.11 or later is needed, as python3.11 or python3" >&2
        exit 1
    fi
    rm -rf .venv
    "$python" -m venv .venv
fi

# What is installed is what these files said, from this folder: an editable installation knows it by its path.
wanted="$(pwd) $(cat setup.cfg pyproject.toml scripts/constraints.txt | cksum)"
installed() {
    [ -f ".venv/installed$1" ] && [ "$(cat ".venv/installed$1")" = "$wanted" ]
}
if ! installed "$extra" && ! installed test; then
    echo "setting up .venv (once; some minutes where packages have to be downloaded)" >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
        --constraint scripts/constraints.txt --editable ".${extra:+[$extra]}"
    echo "$wanted" >".venv/installed$extra"
fi
