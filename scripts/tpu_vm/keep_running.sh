#!/usr/bin/env bash
# Keeps the run going until it is done: makes the machines anew when they were taken away, and starts the run again
# when it broke. It goes on from the checkpoint in the bucket. Run it where it can stay, such as a small machine in tmux.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

MAX_FAILURES=5 # of the run, each within an hour of the start before: then a person should look
failures=0
started=0

make() {
  "$here/create.sh" && "$here/setup.sh" && "$here/start.sh"
}

while true; do
  state="$(tpu describe --format='value(state)' 2>/dev/null || echo MISSING)"
  case "$state" in
    READY)
      # Each machine says one word. run.exit: it ended there; neither that nor a process: it was never started there.
      # shellcheck disable=SC2016  # to be expanded there
      ask='cat run.exit 2>/dev/null || { kill -0 $(cat run.pid) 2>/dev/null && echo running; } || echo none'
      found="$(on_all "$ask" 2>/dev/null | sort -u | xargs)" || found="" # also where one machine does not answer
      case " $found " in
        "  ") echo "$(date -Is) not every machine answers" ;;
        *" running "*) ;; # the others have ended or will
        " 0 ") echo "the run is done; delete.sh gives the machines back" && exit 0 ;;
        *" 2 "*) echo "error: the command of the run is wrong; see run.log" >&2 && exit 2 ;;
        *" none "*) { "$here/setup.sh" && "$here/start.sh"; } || echo "$(date -Is) it could not be started" ;;
        *)
          ((SECONDS - started < 3600)) || failures=0
          failures=$((failures + 1))
          started=$SECONDS
          if ((failures > MAX_FAILURES)); then
            echo "error: the run failed $failures times; see run.log" >&2
            exit 1
          fi
          echo "$(date -Is) the run ended with code $found; starting it again"
          "$here/start.sh" || true
          ;;
      esac
      ;;
    MISSING) # or nobody says so: then making it fails, and nothing is deleted
      echo "$(date -Is) $NAME is not there; making it"
      make || echo "$(date -Is) not to be had; trying again in $POLL_S s"
      ;;
    PREEMPTED | TERMINATED | STOPPED)
      echo "$(date -Is) $NAME is $state; making it anew"
      { tpu delete --quiet && make; } || echo "$(date -Is) not to be had; trying again in $POLL_S s"
      ;;
    *) echo "$(date -Is) $NAME is $state" ;;
  esac
  sleep "$POLL_S"
done
