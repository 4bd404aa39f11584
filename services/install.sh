#!/bin/sh
# Installs a list of locked packages into a folder, small and every time the same: install.sh LIST FOLDER
set -eu
uv pip install --quiet --no-deps --require-hashes --prefix "$2" --requirements "$1"
# What only debuggers read (100 MB of spaCy), tests, commands, and tables of places and carriers that nothing here asks for.
# Libraries that wheels bring in folders *.libs stay as they are: strip breaks those.
find "$2" -name '*.so' -not -path '*.libs/*' -exec strip --strip-debug {} +
find "$2" -type d -name tests -prune -exec rm -r {} +
[ ! -d "$2/bin" ] || find "$2/bin" -type f -delete
rm -rf "$2"/lib/python*/site-packages/phonenumbers/geodata "$2"/lib/python*/site-packages/phonenumbers/carrierdata
find "$2" -exec touch --no-dereference --date=@0 {} +
