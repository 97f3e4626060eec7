#!/usr/bin/env bash
# Starts the run on every machine; it goes on from the checkpoint in the bucket, if there is one.
#
# Look on with:  gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=0 --command='tail -f run.log'
# Of a slice, look on the machine whose log does not say that it follows.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

on_all "
  if [ -f run.pid ] && kill -0 \$(cat run.pid) 2>/dev/null; then echo 'already running'; exit 0; fi
  rm -f run.exit run.stop
  setsid nohup bash sapo_jax/scripts/tpu_vm/on_machine.sh >>run.log 2>&1 </dev/null &
  echo \$! >run.pid
"
