#!/usr/bin/env bash
# What start.sh runs on each machine: the run, beside it copies to the bucket, at the end its exit code in run.exit.
trap 'echo "$?" >"$HOME/run.exit"' EXIT
trap 'exit 143' TERM INT
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

workdir="$RUNS_DIR/$RUN"
copy="$RUNS_DIR/.$RUN.copy"
store="$BUCKET/$RUN"
# Is written last: a checkpoint without it does not count, so a copy that was cut short leaves no false one.
mark='.*/_CHECKPOINT_METADATA$'

sync_up() { # only the process that reports has a workdir of its own, and with it a lock
  [[ -f "$workdir/.lock" ]] || return 0
  rm -rf "$copy"
  cp -al "$workdir" "$copy" || return # hard links: files that are replaced or removed meanwhile stay as they were
  find "$copy" -name '*.orbax-checkpoint-tmp*' -prune -exec rm -rf {} +
  if [[ -d "$copy/checkpoints" ]]; then
    gcloud storage rsync --recursive --exclude="$mark" "$copy/checkpoints" "$store/checkpoints" || return
    gcloud storage rsync --recursive "$copy/checkpoints" "$store/checkpoints" || return
  fi
  # The rest comes after the checkpoint that it goes with, and what was removed here goes last.
  gcloud storage rsync --recursive --exclude='^\.lock$' "$copy" "$store" || return
  gcloud storage rsync --recursive --exclude='^\.lock$' --delete-unmatched-destination-objects "$copy" "$store" || return
  rm -rf "$copy"
}

mkdir -p "$workdir"
if [[ ! -f "$workdir/.lock" ]]; then
  # A look that fails ends this script: a run that seems to be new would take the place of the one in the bucket.
  runs="$(gcloud storage ls "$BUCKET")"
  if grep -qxF "$store/" <<<"$runs"; then
    # Every machine fetches it: which one leads is known only once they run. What an older copy left goes.
    gcloud storage rsync --recursive --delete-unmatched-destination-objects "$store" "$workdir"
  fi
fi

arguments=(--config="$CONFIG" --workdir="$workdir")
[[ -z "$DISTRIBUTED" ]] || arguments+=(--distributed="$DISTRIBUTED")
read -r -a more <<<"$OVERRIDES"
read -r -a variables <<<"$ENVIRONMENT"
[[ -z "$ENVIRONMENT" ]] || export "${variables[@]}"

cd "$root"
.venv/bin/python -m sapo_jax.main "${arguments[@]}" "${more[@]}" &
run=$!
signalled=0
trap 'signalled=1; kill -TERM "$run" 2>/dev/null || true' TERM INT

(
  trap '' TERM INT
  last=$SECONDS
  while kill -0 "$run" 2>/dev/null; do
    sleep 1
    ((SECONDS - last >= SYNC_S)) || continue
    sync_up || echo "the copy to $store failed; the next one is in $SYNC_S s"
    last=$SECONDS
  done
) &
syncing=$!

code=0
while true; do
  code=0
  wait "$run" || code=$?
  kill -0 "$run" 2>/dev/null || break # a signal ends `wait`, too
done
wait "$syncing" || true # a copy that is under way is finished
sync_up || { echo "the last copy to $store failed"; [[ "$code" != 0 ]] || code=1; }
# A run that a signal stopped has ended well and is not done, unless stop.sh asked for that.
((code != 0 || signalled == 0)) || [[ -f "$HOME/run.stop" ]] || code=143
exit "$code"
