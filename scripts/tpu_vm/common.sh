# shellcheck shell=bash
# Read by the other scripts: the variables of `env` and how gcloud is called.

set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck disable=SC2034  # for the scripts that read this one
root="$(cd "$here/../.." && pwd)"
names=(PROJECT ZONE NAME ACCELERATOR_TYPE RUNTIME_VERSION SPOT BUCKET RUNS_DIR RUN CONFIG DISTRIBUTED OVERRIDES
  ENVIRONMENT PYTHON SYNC_S POLL_S)

# What the shell has set goes before the file.
given="$(for name in "${names[@]}"; do [[ -z "${!name+x}" ]] || declare -p "$name"; done)"
if [[ -f "$here/env" ]]; then
  # shellcheck source=env.example
  source "$here/env"
fi
eval "$given"

for name in "${names[@]}"; do
  if [[ -z "${!name+x}" ]]; then
    echo "error: $name is not set; copy scripts/tpu_vm/env.example to scripts/tpu_vm/env and edit it" >&2
    exit 2
  fi
done
if [[ "$BUCKET" != gs://* ]]; then
  echo "error: BUCKET=$BUCKET: must be gs://NAME, where the run outlives its machines" >&2
  exit 2
fi

place=(--zone="$ZONE")
[[ -z "$PROJECT" ]] || place+=(--project="$PROJECT")

tpu() { # VERB ARGUMENTS...
  local verb="$1"
  shift
  gcloud compute tpus tpu-vm "$verb" "$NAME" "${place[@]}" "$@"
}

on_all() { # COMMAND: runs it on every machine
  tpu ssh --worker=all --command="$1"
}
