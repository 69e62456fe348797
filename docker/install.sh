#!/bin/sh
# Steps of the Dockerfile that its targets have in common.
#   install.sh packages LOCK   what LOCK names, into /opt/fathom/venv; bills of materials into /usr/share/fathom
#   install.sh code            the project without its dependencies, into /opt/fathom/app
set -eu

# Compiled here, because nothing can be written when it runs; never checked again against the source's time stamp.
compile() { /tools/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash "$1"; }

case $1 in
  packages)
    python3 -m venv --without-pip /opt/fathom/venv
    # The two exceptions are empty packages that name others; there is no wheel of them.
    /tools/bin/python -m pip --python /opt/fathom/venv/bin/python install --require-hashes --requirement "$2" \
      --only-binary :all: --no-binary tensorrt-rtx,tensorrt-rtx-cu13
    compile /opt/fathom/venv/lib
    mkdir /usr/share/fathom
    /tools/bin/cyclonedx-py environment --pyproject /build/pyproject.toml --output-reproducible \
      --output-file /usr/share/fathom/sbom.cdx.json /opt/fathom/venv/bin/python
    /tools/bin/debsbom generate --sbom-type cdx --out /usr/share/fathom/sbom-debian 2>/build/debsbom.log
    ;;
  code)
    rm -rf /opt/fathom/app
    /tools/bin/python -m pip install --no-deps --no-build-isolation --target /opt/fathom/app /build
    compile /opt/fathom/app
    ;;
  *)
    echo "install.sh: packages LOCK or code, not: $*" >&2
    exit 2
    ;;
esac
