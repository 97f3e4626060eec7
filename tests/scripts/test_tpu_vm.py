"""The scripts for TPU VMs against a gcloud that only writes down what it is asked: no TPU was ever near them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts" / "tpu_vm"
GCLOUD = """#!/usr/bin/env bash
echo "${*//$'\\n'/ }" >>"$GCLOUD_LOG"
case "$*" in
  "storage ls "*) echo "$GCLOUD_RUNS"; exit "${GCLOUD_LS:-0}" ;;
  *" describe "*) [[ -n "$GCLOUD_STATE" ]] && echo "$GCLOUD_STATE" ;;
  *" ssh "*run.exit*) echo "$GCLOUD_EXIT" ;;
esac
"""
TRAINER = """#!/usr/bin/env bash
workdir="$HOME/runs/paper"
mkdir -p "$workdir/checkpoints/2" "$workdir/checkpoints/4.orbax-checkpoint-tmp"
touch "$workdir/.lock" "$workdir/checkpoints/2/_CHECKPOINT_METADATA"
echo "$*" >"$HOME/arguments"
env >"$HOME/variables"
exit 1
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with these scripts, a settled `env`, a false gcloud and a false trainer; its parent is the home."""
    root = tmp_path / "checkout"
    shutil.copytree(SCRIPTS, root / "scripts" / "tpu_vm")
    settings = (SCRIPTS / "env.example").read_text().replace('BUCKET=""', 'BUCKET="gs://kept"')
    settings = re.sub("RUNS_DIR=.*", f'RUNS_DIR="{tmp_path}/runs"', settings)
    (root / "scripts" / "tpu_vm" / "env").write_text(settings)
    for path, content in ((tmp_path / "bin" / "gcloud", GCLOUD), (root / ".venv" / "bin" / "python", TRAINER)):
        path.parent.mkdir(parents=True)
        path.write_text(content)
        path.chmod(0o755)
    return root


def _run(checkout: Path, script: str, **variables: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Returns what a script did and what it asked gcloud for."""
    home, log = checkout.parent, checkout.parent / "asked"
    path = f"{home / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", checkout / "scripts" / "tpu_vm" / script],
        env={"HOME": str(home), "PATH": path, "GCLOUD_LOG": str(log), **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done, log.read_text().splitlines() if log.exists() else []


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.glob("*.sh")))
def test_bash_can_read_it(script: str) -> None:
    subprocess.run(["bash", "-n", SCRIPTS / script], check=True)


def test_every_variable_is_explained() -> None:
    listed = re.search(r"names=\((.*?)\)", (SCRIPTS / "common.sh").read_text(), re.DOTALL)
    assert listed is not None
    assert listed[1].split() == re.findall(r"^([A-Z_]+)=", (SCRIPTS / "env.example").read_text(), re.MULTILINE)


@pytest.mark.parametrize(("variable", "value"), [("BUCKET", ""), ("BUCKET", "kept"), ("ZONE", None)])
def test_a_missing_value_is_one_line(checkout: Path, variable: str, value: str | None) -> None:
    env = checkout / "scripts" / "tpu_vm" / "env"
    if value is None:
        env.write_text(re.sub(rf"^{variable}=.*\n", "", env.read_text(), flags=re.MULTILINE))
    done, asked = _run(checkout, "create.sh", **({variable: value} if value is not None else {}))
    assert done.returncode == 2 and not asked
    assert re.fullmatch(rf"error: {variable}.*\n", done.stderr)


def test_a_slice_is_created_as_the_variables_say(checkout: Path) -> None:
    done, asked = _run(checkout, "create.sh", ZONE="europe-west4-b", SPOT="0", PROJECT="ours")
    assert done.returncode == 0, done.stderr
    assert asked == [
        "compute tpus tpu-vm create sapo --zone=europe-west4-b --project=ours "
        "--accelerator-type=v5litepod-8 --version=v2-alpha-tpuv5-lite"
    ]
    assert "--spot" in _run(checkout, "create.sh")[1][-1]


def test_a_machine_copies_a_checkpoint_before_its_mark_and_leaves_the_exit_code(checkout: Path) -> None:
    done, asked = _run(checkout, "on_machine.sh", DISTRIBUTED="auto", ENVIRONMENT="HF_TOKEN=t COLOUR=red")
    home = checkout.parent
    assert done.returncode == 1, done.stderr
    assert (home / "run.exit").read_text() == "1\n"
    assert {"HF_TOKEN=t", "COLOUR=red"} < set((home / "variables").read_text().splitlines())
    arguments = (home / "arguments").read_text()
    assert "-m sapo_jax.main --config=configs/qwen05b.py:4_4 " in arguments
    assert arguments.endswith("--distributed=auto --config.host.mesh_node=8 --config.host.nodes_per_program=8\n")
    look, data, mark, rest, removed = asked
    assert look == "storage ls gs://kept"
    assert "_CHECKPOINT_METADATA" in data and data.endswith("/checkpoints gs://kept/paper/checkpoints")
    assert "--exclude" not in mark and mark.endswith("/checkpoints gs://kept/paper/checkpoints")
    assert rest.endswith(" gs://kept/paper") and "--delete" not in rest
    assert removed.endswith(" gs://kept/paper") and "--delete-unmatched-destination-objects" in removed
    assert not list(home.glob("runs/.*"))


def test_a_new_machine_fetches_the_run_that_the_bucket_holds(checkout: Path) -> None:
    done, asked = _run(checkout, "on_machine.sh", GCLOUD_RUNS="gs://kept/older/\ngs://kept/paper/")
    assert done.returncode == 1, done.stderr  # that of the run
    fetched = f"gs://kept/paper {checkout.parent}/runs/paper"
    assert asked[1] == f"storage rsync --recursive --delete-unmatched-destination-objects {fetched}"


def test_a_bucket_that_does_not_answer_is_not_an_empty_one(checkout: Path) -> None:
    done, asked = _run(checkout, "on_machine.sh", GCLOUD_LS="1")
    assert done.returncode == 1 and asked == ["storage ls gs://kept"]
    assert (checkout.parent / "run.exit").read_text() == "1\n", "else the loop would take it for never started"
    assert not (checkout.parent / "arguments").exists(), "nothing was trained"


@pytest.mark.parametrize(("code", "expected"), [("0", 0), ("2", 2), ("0\n0", 0), ("1\n2\n1", 2)])
def test_the_loop_ends_with_the_run_on_every_machine(checkout: Path, code: str, expected: int) -> None:
    done, asked = _run(checkout, "keep_running.sh", GCLOUD_STATE="READY", GCLOUD_EXIT=code)
    assert done.returncode == expected
    assert [line.split()[3] for line in asked] == ["describe", "ssh"]


@pytest.mark.parametrize(("first", "code"), [("0\nrunning", 0), ("running\n1", 0), ("", 0), ("0", 1)])
def test_the_loop_waits_for_every_machine(checkout: Path, first: str, code: int) -> None:
    """The one that leads may be any of them, and copies the last checkpoint when the others have ended."""
    gcloud, looked = checkout.parent / "bin" / "gcloud", checkout.parent / "looked"
    later = f'if [[ -f {looked} ]]; then echo 0; else touch {looked}; echo "{first}"; exit {code}; fi'
    gcloud.write_text(GCLOUD.replace('echo "$GCLOUD_EXIT"', later))
    done, asked = _run(checkout, "keep_running.sh", GCLOUD_STATE="READY", POLL_S="0")
    assert done.returncode == 0, done.stderr
    assert [line.split()[3] for line in asked] == ["describe", "ssh"] * 2


def test_the_loop_starts_a_broken_run_again_and_gives_up_at_last(checkout: Path) -> None:
    done, asked = _run(checkout, "keep_running.sh", GCLOUD_STATE="READY", GCLOUD_EXIT="1", POLL_S="0")
    assert done.returncode == 1 and "error: the run failed 6 times" in done.stderr
    assert sum("on_machine.sh" in line for line in asked) == 5


def test_machines_that_were_taken_away_are_made_anew(checkout: Path) -> None:
    state = checkout.parent / "state"
    state.write_text("PREEMPTED")
    gcloud = checkout.parent / "bin" / "gcloud"
    # Created once, it is there and its run is done.
    gcloud.write_text(
        GCLOUD.replace('"$GCLOUD_STATE"', f'"$(cat {state})"') + f'[[ "$*" != *" create "* ]] || echo READY >{state}\n'
    )
    subprocess.run(["git", "init", "-q", checkout], check=True)
    done, asked = _run(checkout, "keep_running.sh", GCLOUD_EXIT="0", POLL_S="0")
    assert done.returncode == 0, done.stderr
    verbs = [line.split()[3] for line in asked]
    assert verbs == ["describe", "delete", "create", "scp", "ssh", "ssh", "describe", "ssh"]


def test_machines_of_which_nothing_is_heard_are_never_deleted(checkout: Path) -> None:
    """They may be at work: `describe` fails, too, where the network or the account does."""
    gcloud, looked = checkout.parent / "bin" / "gcloud", checkout.parent / "looked"
    # The first look fails, and so does making what is there already; the second look finds it at work and done.
    gcloud.write_text(
        GCLOUD.replace('[[ -n "$GCLOUD_STATE" ]]', f"[[ -f {looked} ]] || {{ touch {looked}; exit 1; }}").replace(
            "esac", '  *" create "*) exit 1 ;;\nesac'
        )
    )
    done, asked = _run(checkout, "keep_running.sh", GCLOUD_STATE="READY", GCLOUD_EXIT="0", POLL_S="0")
    assert done.returncode == 0, done.stderr
    assert [line.split()[3] for line in asked] == ["describe", "create", "describe", "ssh"]
