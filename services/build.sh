#!/usr/bin/env bash
# Builds the images that are named, with docker, podman or buildah, or with a cluster's own command, which loads it too:
#
#   services/build.sh [--print] IMAGE...    gateway safety orchestrator retriever modelserver monitor operator tools:
#                                           from services/Dockerfile, the same sources giving the same bytes;
#                                           vllm: the model server with vLLM; test-postgres: for tests on a cluster
#
# --print shows the commands and runs none. Environment, each found where it is not set: BUILDER (docker, podman,
# buildah), CLUSTER (a command: CLUSTER build TAG CONTEXT ARGUMENT...; else none), VERSION, REVISION, SOURCE_DATE_EPOCH.
set -euo pipefail
cd "${BASH_SOURCE[0]%/*}/.."

print=
if [ "${1-}" = --print ]; then print=yes; shift; fi
cluster=${CLUSTER-}
version=${VERSION-$(sed -n '/^version = /{s/.*"\(.*\)"/\1/p;q}' pyproject.toml)}
revision=${REVISION-$(git rev-parse HEAD 2>/dev/null || echo unknown)}
# The commit's time, in seconds: what an image is dated by.
epoch=${SOURCE_DATE_EPOCH-$(git log -1 --format=%ct 2>/dev/null || true)}

builder=${BUILDER-}
if [ -z "$cluster$builder" ]; then
  for tool in docker podman buildah; do
    if "$tool" info >/dev/null 2>&1; then builder=$tool; break; fi
  done
  [ -n "$builder" ] || { echo "No image can be built: neither docker, podman nor buildah is installed and running" >&2; exit 1; }
fi

named=(--build-arg "VERSION=$version" --build-arg "REVISION=$revision")
dated=()
if [ -n "$epoch" ]; then
  dated=(--label "org.opencontainers.image.created=$(date -u -d "@$epoch" +%FT%TZ)")
  # docker dates the layers only by the argument, the others only by the option.
  if [ -z "$cluster" ] && [ "$builder" = docker ]; then dated+=(--build-arg "SOURCE_DATE_EPOCH=$epoch"); else dated+=(--timestamp "$epoch"); fi
fi

build() { # TAG CONTEXT [ARGUMENT]...
  local command
  if [ -n "$cluster" ]; then
    command=("$cluster" build "$1" "$2" --volume "$HOME/.cache/uv:/root/.cache/uv")
  else
    command=("$builder" build)
    [ "$builder" != buildah ] || command+=(--layers)
    command+=(--tag "$1" "$2")
  fi
  command+=("${@:3}")
  printf '%q ' "${command[@]}"
  echo
  [ -z "$print" ] || return 0
  [ -z "$cluster" ] || mkdir -p "$HOME/.cache/uv"
  "${command[@]}"
}

for image in "$@"; do
  case $image in
    gateway | safety | orchestrator | retriever | modelserver | monitor | operator | tools)
      build "docker.io/genaifactory/$image:$version" . --file services/Dockerfile \
        --build-arg "PACKAGE=genaifactory-${image/#tools/local}" "${named[@]}" "${dated[@]}" ;;
    vllm)
      build docker.io/genaifactory/modelserver:cpu . --file services/modelserver/Dockerfile --target cpu "${named[@]}" ;;
    test-postgres)
      build docker.io/genaifactory/test-postgres:15 tests/cluster/images/postgres ;;
    *)
      echo "There is no image '$image'; the first lines of services/build.sh list them." >&2; exit 2 ;;
  esac
done
