#!/usr/bin/env bash
# Creates the TPU VM, or the slice with all its machines.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

options=(--accelerator-type="$ACCELERATOR_TYPE" --version="$RUNTIME_VERSION")
[[ "$SPOT" != 1 ]] || options+=(--spot)
tpu create "${options[@]}"
