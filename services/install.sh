#!/bin/sh
# Installs a list of locked packages into a folder, small and every time the same: install.sh LIST FOLDER
set -eu
uv pip install --quiet --no-deps --require-hashes --prefix "$2" --requirements "$1"
# What only debuggers read, tests and commands.
# Libraries that wheels bring in folders *.libs stay as they are: strip breaks those.
find "$2" -name '*.so' -not -path '*.libs/*' -exec strip --strip-debug {} +
find "$2" -type d -name tests -prune -exec rm -r {} +
[ ! -d "$2/bin" ] || find "$2/bin" -type f -delete
find "$2" -exec touch --no-dereference --date=@0 {} +
