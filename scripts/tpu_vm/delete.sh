#!/usr/bin/env bash
# Gives the machines back; the run stays in the bucket.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

tpu delete --quiet
