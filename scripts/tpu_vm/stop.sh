#!/usr/bin/env bash
# Asks the run to finish its round, save and end; the copy to the bucket follows.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

on_all "if [ -f run.pid ]; then touch run.stop; kill -TERM \$(cat run.pid) 2>/dev/null || echo 'not running'; fi"
