#!/bin/sh
# Pin what the images install, with hashes: docker/requirements/*.txt from pyproject.toml and tools.in. Needs uv.
# Run it after a change of dependencies, and to take newer releases: docker/lock.sh --upgrade
set -eu
export UV_CUSTOM_COMPILE_COMMAND=docker/lock.sh
cd "$(dirname "$0")/.."

lock() { # NAME SOURCE...
  name=$1 && shift
  uv pip compile --quiet --no-annotate --generate-hashes \
    --python-version 3.13 --python-platform x86_64-manylinux_2_28 --only-binary :all: \
    --no-binary tensorrt-rtx --no-binary tensorrt-rtx-cu13 \
    --output-file "docker/requirements/$name.txt" "$@" >/dev/null
}

upgrade=${1:-}
lock tools docker/requirements/tools.in $upgrade
lock cpu pyproject.toml --extra cpu --extra tracing $upgrade
lock gpu pyproject.toml --extra gpu --extra tensorrt-rtx --extra tracing $upgrade
lock export pyproject.toml --extra cpu --extra export --extra kernels --extra tensorrt-rtx $upgrade
python3 docker/one_hash.py docker/requirements/tools.txt docker/requirements/cpu.txt docker/requirements/gpu.txt \
  docker/requirements/export.txt
