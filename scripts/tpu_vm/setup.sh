#!/usr/bin/env bash
# Brings this checkout and its environment to every machine. Run it again after a change of the code.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

umask 077 # the variables may hold a token
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
# What git tracks, as it is here, changes included: all machines must run the same code.
git -C "$root" ls-files -z | tar -C "$root" --null --files-from=- -czf "$work/code.tar.gz"
for name in "${names[@]}"; do declare -p "$name"; done | sed 's/^declare -- //' >"$work/env"

gcloud compute tpus tpu-vm scp "$work/code.tar.gz" "$work/env" "$NAME:" "${place[@]}" --worker=all
on_all "
  set -e
  rm -rf sapo_jax && mkdir sapo_jax && tar -C sapo_jax -xzf code.tar.gz && mv env sapo_jax/scripts/tpu_vm/env
  sudo loginctl enable-linger \"\$(id -un)\" # else what lies in /dev/shm goes with the last ssh session
  command -v cc >/dev/null || {
    sudo apt-get -o DPkg::Lock::Timeout=600 update -q
    sudo apt-get -o DPkg::Lock::Timeout=600 install -q -y build-essential
  }
  python3 -m pip install --quiet --user uv
  cd sapo_jax
  python3 -m uv venv --quiet --clear --python '$PYTHON' .venv
  VIRTUAL_ENV=.venv python3 -m uv pip install --quiet -e '.[tpu]' -c constraints.txt
  .venv/bin/python -c 'import jax; print(jax.__version__)'
"
