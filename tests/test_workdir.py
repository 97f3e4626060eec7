from __future__ import annotations

import dataclasses
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sapo_jax import workdir
from sapo_jax.config import LearnerConfig, SapoConfig, SharingConfig, TasksConfig
from sapo_jax.workdir import WorkdirError, open_workdir, read_record

_CONFIG = SapoConfig(rounds=10, seed=7, tasks=TasksConfig(specialties=("gcd", "lcm")))


def _start(path: Path, config: SapoConfig = _CONFIG) -> None:
    with open_workdir(path, config) as work:
        work.metrics_path.write_text('{"round": 0, "node": null}\n')


def test_a_new_workdir_records_config_and_environment(tmp_path: Path) -> None:
    with open_workdir(tmp_path / "runs" / "a", _CONFIG) as work:
        assert work.config == _CONFIG and dict(work.resolved) == {}
        assert work.environment_changes() == ()
    raw = json.loads((tmp_path / "runs" / "a" / "config.json").read_text())
    assert raw["config"]["tasks"]["specialties"] == ["gcd", "lcm"]
    assert raw["environment"]["cores"] == len(os.sched_getaffinity(0))
    versions = raw["environment"]["versions"]
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"jax", "flax", "optax", "orbax-checkpoint", "transformers", "reasoning_gym"} <= versions.keys()
    assert {"git_revision", "platform", "created_time"} <= raw["environment"].keys()
    assert read_record(tmp_path / "runs" / "a").config == _CONFIG


def test_the_same_config_continues(tmp_path: Path) -> None:
    _start(tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    with open_workdir(tmp_path, _CONFIG) as work:
        assert work.config == _CONFIG
    assert (tmp_path / "config.json").read_bytes() == before


def test_only_rounds_may_grow(tmp_path: Path) -> None:
    _start(tmp_path)
    with open_workdir(tmp_path, dataclasses.replace(_CONFIG, rounds=20)) as work:
        assert work.config.rounds == 20
    assert read_record(tmp_path).config.rounds == 20
    with pytest.raises(WorkdirError, match=r"config\.rounds: 20 there, 10 here"):
        open_workdir(tmp_path, _CONFIG)


def test_every_differing_key_is_named_with_both_values(tmp_path: Path) -> None:
    _start(tmp_path)
    other = dataclasses.replace(
        _CONFIG,
        rounds=11,
        learner=LearnerConfig(learning_rate=3e-4),
        sharing=SharingConfig(local=8, external=0),
        tasks=TasksConfig(specialties=("gcd",)),
    )
    with pytest.raises(WorkdirError) as caught:
        open_workdir(tmp_path, other)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "config.learner.learning_rate: 1e-05 there, 0.0003 here" in message
    assert "config.sharing.local: 4 there, 8 here" in message
    assert "config.sharing.external: 4 there, 0 here" in message
    assert "config.tasks.specialties: ('gcd', 'lcm') there, ('gcd',) here" in message
    assert "rounds:" not in message
    assert read_record(tmp_path).config == _CONFIG
    open_workdir(tmp_path, _CONFIG).close()  # the refused attempt left no lock


def test_a_run_that_did_nothing_yet_may_be_corrected(tmp_path: Path) -> None:
    with open_workdir(tmp_path, _CONFIG) as work:
        work.fix_resolved(compute_dtype="float32")
        work.checkpoints_path.mkdir()
    other = dataclasses.replace(_CONFIG, nodes=4)
    with open_workdir(tmp_path, other) as work:
        assert dict(work.resolved) == {}
    assert read_record(tmp_path).config == other


def test_resolved_values_are_fixed_once(tmp_path: Path) -> None:
    with open_workdir(tmp_path, _CONFIG) as work:
        work.fix_resolved(compute_dtype="bfloat16")
        work.metrics_path.write_text("")
    assert read_record(tmp_path).resolved == {"compute_dtype": "bfloat16"}
    with open_workdir(tmp_path, dataclasses.replace(_CONFIG, rounds=30)) as work:
        assert work.resolved["compute_dtype"] == "bfloat16"
        work.fix_resolved(compute_dtype="bfloat16", platform="cpu")
        with pytest.raises(WorkdirError, match="compute_dtype is fixed to 'bfloat16'.*'float32'"):
            work.fix_resolved(compute_dtype="float32")
    record = read_record(tmp_path)
    assert record.resolved == {"compute_dtype": "bfloat16", "platform": "cpu"} and record.config.rounds == 30


def test_a_workdir_is_locked_against_other_processes(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from sapo_jax.config import SapoConfig\n"
        "from sapo_jax.workdir import open_workdir\n"
        "work = open_workdir(sys.argv[1], SapoConfig())\n"
        "print('open', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    root = Path(workdir.__file__).parents[1]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as other:
        assert other.stdin is not None and other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(WorkdirError, match=rf"in use by another process \(id {other.pid}\)"):
            open_workdir(tmp_path, SapoConfig())
        assert read_record(tmp_path).config == SapoConfig()  # reading needs no lock
        other.kill()  # the lock goes with the process
    open_workdir(tmp_path, SapoConfig()).close()


def test_a_second_open_in_the_same_process_is_refused(tmp_path: Path) -> None:
    with open_workdir(tmp_path, _CONFIG), pytest.raises(WorkdirError, match="in use"):
        open_workdir(tmp_path, _CONFIG)


def test_unusable_places_are_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    for path in (file, file / "below", Path("/proc/self/run")):
        with pytest.raises(WorkdirError, match=rf"workdir {path}: cannot be used"):
            open_workdir(path, _CONFIG)


def test_an_unwritable_place_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may write anywhere, so the refusal comes from the one call that would meet it.
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(WorkdirError, match=rf"workdir {tmp_path}: cannot be used: Permission denied"):
        open_workdir(tmp_path, _CONFIG)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"config": {}, "resolved": {}, "environment": {}}'])
def test_a_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    _start(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(WorkdirError, match=r"config\.json"):
        open_workdir(tmp_path, _CONFIG)


def test_a_run_without_record_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(WorkdirError, match="metrics.jsonl of a run but no config.json"):
        open_workdir(tmp_path, _CONFIG)
    assert not (tmp_path / "config.json").exists()
    with pytest.raises(WorkdirError, match="no config.json there"):
        read_record(tmp_path)


def test_environment_changes_are_listed(tmp_path: Path) -> None:
    _start(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    raw["environment"]["versions"]["jax"] = "0.0.1"
    raw["environment"]["cores"] = 99
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with open_workdir(tmp_path, _CONFIG) as work:
        changes = work.environment_changes()
    assert len(changes) == 2
    assert changes[0].startswith("cores: 99 at the start") and changes[1].startswith("versions.jax: 0.0.1 at the start")


def test_replace_file_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    workdir.replace_file(path, "old")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        workdir.replace_file(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
