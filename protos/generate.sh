#!/usr/bin/env bash
# Generates the Python code of every contract beside its .proto file, and the table of who may call what. Run by `make protos`; CI checks for no difference.
set -euo pipefail
cd "$(dirname "$0")"
find genaifactory -name '*_pb2*.py*' -delete
python -m grpc_tools.protoc -I . --python_out=. --grpc_python_out=. \
  --mypy_out=readable_stubs:. --mypy_grpc_out=readable_stubs:. $(find genaifactory -name '*.proto' | sort)
python permissions.py > PERMISSIONS.md
