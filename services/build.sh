#!/usr/bin/env bash
# Builds the images that are named, with docker, podman or buildah; for a cluster that reaches no registry it loads them:
#
#   services/build.sh [--print] IMAGE...    gateway safety orchestrator retriever modelserver monitor operator tools:
#                                           from services/Dockerfile, the same sources giving the same bytes;
#                                           vllm: the model server with vLLM; train: the step train, which shares
#                                           torch with it (VARIANT=gpu: for NVIDIA); mlflow: its server, also from
#                                           services/Dockerfile; test-postgres: for tests on a cluster
#
# --print shows the commands and runs none. Environment, each found where it is not set: BUILDER (docker, podman,
# buildah), CLUSTER (a command: CLUSTER load ARCHIVE; buildah builds for it), VERSION, REVISION, SOURCE_DATE_EPOCH.
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
[ -z "$cluster" ] || builder=buildah
if [ -z "$builder" ]; then
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
  if [ "$builder" = docker ]; then dated+=(--build-arg "SOURCE_DATE_EPOCH=$epoch"); else dated+=(--timestamp "$epoch"); fi
fi

run() { # COMMAND...
  printf '%q ' "$@"
  echo
  [ -n "$print" ] || "$@"
}

tags=()
build() { # TAG CONTEXT [ARGUMENT]...
  local command=("$builder" build)
  [ "$builder" != buildah ] || command+=(--layers)
  # Without a user namespace or a network of its own, and with the packages that are there: this machine is a container.
  if [ -n "$cluster" ]; then
    command+=(--isolation=chroot --network=host --volume "$HOME/.cache/uv:/root/.cache/uv")
    [ -n "$print" ] || mkdir -p "$HOME/.cache/uv"
  fi
  run "${command[@]}" --tag "$1" "${@:3}" "$2"  # buildah: options come before the context
}

# Beside the other images: neither this one nor they keep two cores busy all the time.
beside=
build_vllm() {
  build docker.io/genaifactory/modelserver:cpu . --file services/modelserver/Dockerfile --target cpu "${named[@]}"
}

load() { # TAG...
  # One OCI archive, in which a layer that several images share stands once. Not compressed: buildah compresses what it
  # writes as OCI itself, which takes longer than all the rest.
  local tag digest manifests=()
  layout=$(mktemp --directory --tmpdir="${TMPDIR:-/var/tmp}")
  trap 'rm -rf "$layout"' EXIT
  mkdir --parents "$layout/blobs/sha256"
  for tag in "$@"; do
    run buildah push --quiet --disable-compression "$tag" "dir:$layout/pushed"
    [ -z "$print" ] || continue
    digest=$(sha256sum "$layout/pushed/manifest.json" | cut --delimiter=' ' --fields=1)
    manifests+=("$(printf '{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%s","size":%d,%s}' \
      "$digest" "$(stat --format=%s "$layout/pushed/manifest.json")" \
      "\"annotations\":{\"org.opencontainers.image.ref.name\":\"$tag\"}")")
    mv "$layout/pushed/manifest.json" "$layout/blobs/sha256/$digest"
    rm "$layout/pushed/version"
    mv "$layout"/pushed/* "$layout/blobs/sha256"
    rmdir "$layout/pushed"
  done
  echo "$cluster load, of $*"
  [ -z "$print" ] || return 0
  echo '{"imageLayoutVersion":"1.0.0"}' > "$layout/oci-layout"
  (IFS=,; echo "{\"schemaVersion\":2,\"manifests\":[${manifests[*]}]}") > "$layout/index.json"
  # Twice if need be: containerd may collect a layer of the images that these replace in the moment it builds upon it.
  for _ in 1 2; do
    tar --create --directory "$layout" . | "$cluster" load /dev/stdin && return
  done
  return 1
}

for image in "$@"; do
  case $image in
    gateway | safety | orchestrator | retriever | modelserver | monitor | operator | tools)
      tags+=("docker.io/genaifactory/$image:$version")
      build "${tags[-1]}" . --file services/Dockerfile --build-arg "PACKAGE=genaifactory-${image/#tools/local}" \
        "${named[@]}" "${dated[@]}" ;;
    vllm)
      tags+=(docker.io/genaifactory/modelserver:cpu)
      if [ -n "$print" ]; then build_vllm; else build_vllm > >(sed 's/^/vllm: /') 2>&1 & beside=$!; fi ;;
    train)
      tags+=("docker.io/genaifactory/train:${VARIANT:-cpu}")
      if [ -n "$beside" ]; then wait "$beside"; beside=; fi  # most of it is the same layers
      build "${tags[-1]}" . --file services/modelserver/Dockerfile --target "train-${VARIANT:-cpu}" "${named[@]}" ;;
    mlflow)
      tags+=("docker.io/genaifactory/mlflow:$version")
      build "${tags[-1]}" . --file services/Dockerfile --target mlflow "${named[@]}" "${dated[@]}" ;;
    test-postgres)
      tags+=(docker.io/genaifactory/test-postgres:15)
      build "${tags[-1]}" tests/cluster/images/postgres ;;
    *)
      echo "There is no image '$image'; the first lines of services/build.sh list them." >&2; exit 2 ;;
  esac
done
[ -z "$beside" ] || wait "$beside"
[ -z "$cluster" ] || load "${tags[@]}"
