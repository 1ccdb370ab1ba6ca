#!/bin/sh
# Generates proto/generated from the .proto files: `sh proto/generate.sh [OUTPUT_DIR]`.
# `make check` generates into a scratch folder and compares, so that the committed code cannot drift.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
output=${1:-$here/generated}
python=${PYTHON:-$here/../.venv/bin/python}
rm -rf "$output/cloudai_proto"
mkdir -p "$output"
cd "$here"
"$python" -m grpc_tools.protoc -I . --python_out="$output" --pyi_out="$output" --grpc_python_out="$output" \
    cloudai_proto/*/v1/*.proto
find "$output/cloudai_proto" -type d -exec touch {}/__init__.py {}/py.typed \;
find "$output/cloudai_proto" -mindepth 1 -name py.typed -path '*/*/py.typed' ! -path "$output/cloudai_proto/py.typed" -delete
