"""The pool against honest, slow and hostile completions, and against programs that are no workers."""

from __future__ import annotations

import dataclasses
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from sapo_jax.tasks import worker_process
from sapo_jax.tasks.catalog import resolve
from sapo_jax.tasks.held_out import held_out_tasks
from sapo_jax.tasks.reasoning_gym_source import ReasoningGymSource
from sapo_jax.tasks.scoring_pool import ScoringPool
from sapo_jax.tasks.specialty import CatalogError
from sapo_jax.tasks.stream import TaskStream
from sapo_jax.tasks.verifier import InProcessVerifier, score_completion
from sapo_jax.tasks.worker_supply import ScorerStartError, ScoringPoolClosedError
from sapo_jax.types import Completion, FinishReason, Rejection, RejectionReason, Rollout, ScoredRollout, Task, TaskRef

SPECIALTIES = (*resolve("rg_mini_l1"), *resolve("easy", ("chain_sum", "rubiks_cube")))
SOURCE = ReasoningGymSource(SPECIALTIES)
PLAIN = InProcessVerifier(SOURCE)


def tasks_of(name: str, count: int) -> tuple[Task, ...]:
    specialties = tuple(s for s in SPECIALTIES if s.name == name)
    return TaskStream(source=SOURCE, specialties=specialties, run_seed=5, node_id="a").take(0, count).tasks


def rollout(ref: TaskRef, *texts: str) -> Rollout:
    completions = tuple(Completion(text=text, finish_reason=FinishReason.STOP) for text in texts)
    return Rollout(task_ref=ref, node_id="peer", round=1, policy_version=1, completions=completions)


def tagged(answer: str | None) -> str:
    return f"so it is <answer>{answer}</answer>"


def honest(count: int) -> list[Rollout]:
    return [rollout(task.ref, tagged(task.ground_truth), "no idea") for task in tasks_of("chain_sum", count)]


def reasons(verdicts: Sequence[ScoredRollout | Rejection]) -> list[RejectionReason | None]:
    return [verdict.reason if isinstance(verdict, Rejection) else None for verdict in verdicts]


# The library's cube turns once a move, in time linear in the answer: a slow scorer of honest making.
CUBE = tasks_of("rubiks_cube", 1)[0]


def turns(count: int) -> str:
    return tagged("R U " * (count // 2))


def turn_s() -> float:
    """Returns the CPU time of one move on this machine: the least of some tries, the first of which is cold."""

    def once_s() -> float:
        start_s = time.process_time()
        score_completion(CUBE, turns(2000))
        return (time.process_time() - start_s) / 2000

    return min(once_s() for _ in range(5))


COMPLETION_BUDGET_S = 1500 * turn_s()
GROUP_BUDGET_S = 6 * COMPLETION_BUDGET_S
BOMB = turns(8000)  # more than five times a completion's budget, within the limit on an answer's length
SLOW = turns(400)  # well within it; 64 of them are beyond that of a group


@pytest.fixture(scope="module")
def pool() -> Iterator[ScoringPool]:
    budgets = {"completion_budget_s": COMPLETION_BUDGET_S, "group_budget_s": GROUP_BUDGET_S}
    with ScoringPool(SPECIALTIES, lanes=("own", "external"), **budgets) as pool:
        yield pool


def test_verdicts_equal_those_of_this_process(pool: ScoringPool):
    rollouts = [
        rollout(task.ref, tagged(task.ground_truth), tagged("7"), "", "\ud800\x00", "<answer>é²", tagged("1/3") * 50)
        for specialty in SPECIALTIES
        for task in tasks_of(specialty.name, 3)
    ]
    held_out = held_out_tasks(SOURCE, SPECIALTIES[2], 1)[0]
    replace, ref = dataclasses.replace, rollouts[0].task_ref
    rollouts[3:3] = [
        rollout(held_out.ref, "x"),
        rollout(ref),
        rollout(ref, *["x"] * 65),
        rollout(ref, "x" * (2**16 + 1)),
        rollout(replace(ref, seed=-(10**5000)), "x"),
        rollout(replace(ref, config_digest="\x1b"), "x"),
        rollout(replace(ref, dataset="composite"), "x"),
    ]
    expected, found = PLAIN.verify(rollouts), pool.verify(rollouts)
    assert len({type(verdict) for verdict in expected}) == 2 and len(set(reasons(expected))) >= 6
    for ours, theirs in zip(found, expected, strict=True):
        if isinstance(theirs, ScoredRollout):
            theirs = dataclasses.replace(theirs, task=dataclasses.replace(theirs.task, metadata={}))
        assert ours == theirs
    assert {type(score) for v in found if isinstance(v, ScoredRollout) for score in v.scores} == {float}
    assert pool.verify([]) == [] and pool.kills == 0


def test_scores_equal_those_of_this_process(pool: ScoringPool):
    held_out = held_out_tasks(SOURCE, SPECIALTIES[2], 2)
    texts = [
        (held_out[0].ref, [tagged(held_out[0].ground_truth), "x", "x" * (2**16 + 1)]),
        (held_out[1].ref, []),
        (dataclasses.replace(CUBE.ref, index=10**9), ["x"]),
        *((task.ref, [tagged(task.ground_truth), tagged("0.1")]) for task in tasks_of("decimal_arithmetic", 4)),
    ]
    expected = PLAIN.score(texts)
    assert pool.score(texts) == expected
    assert expected[0][0] == 1.0 and expected[0][2] is RejectionReason.COMPLETION_SIZE
    assert pool.score([]) == []


def test_a_batch_larger_than_any_buffer_comes_back_in_order(pool: ScoringPool):
    tasks = tasks_of("chain_sum", 40)
    padding = "\x01" * 60_000  # six bytes each in a frame: 14 MB in all
    rollouts = [rollout(task.ref, padding + tagged(str(n))) for n, task in enumerate(tasks)]
    found = pool.verify(rollouts)
    assert found == [
        dataclasses.replace(v, task=dataclasses.replace(v.task, metadata={}))
        for v in PLAIN.verify(rollouts)
        if isinstance(v, ScoredRollout)
    ]


def test_t5_a_slow_completion_costs_its_rollout_and_nothing_else(pool: ScoringPool):
    kills, busy_s = pool.kills, pool.busy_s("external")
    batch = honest(6)
    batch[2] = rollout(CUBE.ref, tagged("R"), BOMB, tagged("R"))
    found = pool.verify(batch, lane="external")
    assert reasons(found) == [None, None, RejectionReason.TIMEOUT, None, None, None]
    assert isinstance(found[2], Rejection) and "completion_budget_s" in found[2].detail
    assert [v.scores[0] for v in found if isinstance(v, ScoredRollout)] == [1.0] * 5
    assert pool.kills == kills + 1
    assert COMPLETION_BUDGET_S <= pool.busy_s("external") - busy_s


def test_the_time_of_scorers_that_were_not_lost_is_counted(pool: ScoringPool):
    kills, busy_s = pool.kills, pool.busy_s("external")
    pool.verify([rollout(CUBE.ref, *[SLOW] * 8)], lane="external")  # twice the budget of one completion
    assert pool.kills == kills and pool.busy_s("external") - busy_s >= COMPLETION_BUDGET_S


def test_a_slow_text_takes_no_other_text_of_its_question_with_it(pool: ScoringPool):
    expected = PLAIN.score([(CUBE.ref, ["", tagged("R"), tagged("U")])])[0]
    found = pool.score([(CUBE.ref, ["", BOMB, tagged("R"), tagged("U")])])
    assert found == [[expected[0], RejectionReason.TIMEOUT, *expected[1:]]]


def test_many_completions_within_their_budget_exceed_the_one_of_the_group(pool: ScoringPool):
    fitting, too_many = rollout(CUBE.ref, *[SLOW] * 8), rollout(CUBE.ref, *[SLOW] * 64)
    found = pool.verify([fitting, too_many, *honest(1)])
    assert reasons(found) == [None, RejectionReason.TIMEOUT, None]
    assert isinstance(found[1], Rejection) and "group_budget_s" in found[1].detail


@pytest.mark.parametrize(
    "arguments",
    [{"lanes": ()}, {"lanes": ("a", "a")}, {"workers_per_lane": 0}, {"spares": -1}, {"completion_budget_s": 9.0}],
)
def test_senseless_settings_are_refused(arguments: dict[str, object]):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        ScoringPool(SPECIALTIES, **arguments)


def test_senseless_specialties_and_lanes_are_refused(pool: ScoringPool):
    with pytest.raises(CatalogError):
        ScoringPool([SPECIALTIES[0], SPECIALTIES[0]])
    with pytest.raises(ValueError, match="lane 'foreign': must be one of own, external"):
        pool.verify([], lane="foreign")


# A worker that does what the library's scorers did: it runs answers as code.
HOLE = """
import os, sys
from sapo_jax.tasks import verifier, worker
score = verifier.score_answer
def run(task, answer):
    if answer is not None and answer.startswith("run "):
        exec(answer[4:])
    return score(task, answer)
verifier.score_answer = run
worker.main()
"""
SPIN = tagged("run \nwhile True: pass")


def test_t4_a_scorer_that_runs_answers_as_code_breaks_its_process_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(worker_process, "_PROGRAM", ("-c", HOLE))
    ref = tasks_of("chain_sum", 1)[0].ref
    marker = tmp_path / "marker"
    answers = {
        "run pass": None,
        f"run open({str(marker)!r}, 'w')": RejectionReason.WORKER_DIED,
        "run print('noise' * 10000); os.system": None,
        "run os.write(1, b'noise'); os.write(2, b'noise'); sys.stdout.flush()": None,
        "run raise KeyError": RejectionReason.SCORER_FAILED,
        "run bytearray(1 << 40)": RejectionReason.SCORER_FAILED,
        "run assert sys.stdin.read() == '' and 'PATH' not in os.environ": None,
        "run assert not sys.flags.hash_randomization and 'jax' not in sys.modules": None,
        "run os._exit(3)": RejectionReason.WORKER_DIED,
    }
    with ScoringPool(
        SPECIALTIES, lanes=("own", "external"), spares=2, completion_budget_s=600, group_budget_s=600
    ) as pool:
        pool.warm_up()
        # Nothing but the end of the pool would stop this one, and nothing of it reaches the other lane.
        ended: list[BaseException] = []

        def spin() -> None:
            try:
                pool.verify([rollout(ref, SPIN)], lane="external")
            except ScoringPoolClosedError as error:
                ended.append(error)

        spinning = threading.Thread(target=spin)
        spinning.start()
        batch = [rollout(ref, tagged(answer)) for answer in answers]
        found = pool.verify(batch)
        assert reasons(found) == list(answers.values())
        details = [verdict.detail for verdict in found if isinstance(verdict, Rejection)]
        assert "tried to write a file, open a socket or start a process" in details[0]
        assert "exit code 3" in details[-1]
        assert not marker.exists() and spinning.is_alive() and pool.kills == 2
    spinning.join()
    assert len(ended) == 1


ORPHANS = """
import sys, threading
from sapo_jax.tasks import worker_process
from sapo_jax.tasks.catalog import resolve
from sapo_jax.tasks.scoring_pool import ScoringPool
worker_process._PROGRAM = ("-c", sys.argv[1])
pool = ScoringPool(resolve("easy", ("chain_sum",)), spares=0, completion_budget_s=600, group_budget_s=600)
pool.warm_up()
print(*(worker._process.pid for worker in pool._supply._workers), flush=True)
ref = pool._source.ref(pool._source.specialties[0], 0, int(sys.argv[2]))
if sys.argv[3]:
    pool.score([(ref, [sys.argv[3]])])
threading.Event().wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs process descriptors")
@pytest.mark.parametrize("answer", ["", SPIN], ids=["waiting for work", "in an endless answer"])
def test_a_killed_parent_leaves_no_process(answer: str):
    command = [sys.executable, "-c", ORPHANS, HOLE, "0", answer]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as parent:
        assert parent.stdout is not None
        (pid,) = (int(word) for word in parent.stdout.readline().split())
        descriptor = os.pidfd_open(pid)
        try:
            cpu_time = ~pid << 3 | 2  # clock_getcpuclockid(3) of the process
            began_s, deadline_s = time.clock_gettime(cpu_time), time.monotonic() + 60
            while answer and time.clock_gettime(cpu_time) < began_s + 0.5:  # only the endless answer takes so long
                assert time.monotonic() < deadline_s
                time.sleep(0.01)
            parent.send_signal(signal.SIGKILL)
            assert select.select([descriptor], [], [], 20.0)[0], f"process {pid} is still there"
        finally:
            parent.kill()
            os.close(descriptor)


# Programs in place of a worker: they start in no time and misbehave in one way each.
FAKE = """
import json, os, sys
def send(payload):
    os.write(0, len(payload).to_bytes(4, "big") + payload)
def answer(**fields):
    send(json.dumps(fields).encode())
def read():
    return os.read(0, 1 << 16)
read()
answer(ready=True)
while read():
    {misbehave}
"""


def fake(monkeypatch: pytest.MonkeyPatch, misbehave: str) -> None:
    monkeypatch.setattr(worker_process, "_PROGRAM", ("-c", FAKE.format(misbehave=misbehave)))


@pytest.mark.parametrize(
    "misbehave",
    [
        "os.write(0, b'noise on the pipe')",
        "os.write(0, b'\\xff' * 9)",
        "send(b'{')",
        "send(b'\\xff\\xfe')",
        "send(b'[1]')",
        "answer(question='q', ground_truth=None, scores=[0.5])",  # two were asked for
        "answer(question='q', ground_truth=None, scores=[0.5, 1.5])",
        "answer(question='q', ground_truth=None, scores=[0.5, float('nan')])",
        "answer(question='q', ground_truth=None, scores=[0.5, True])",
        "answer(question='q', ground_truth=None, scores='ab')",
        "answer(question=1, ground_truth=None, scores=[0.5, 0.5])",
        "answer(reason='because', detail='')",
        "answer(reason=[], detail='')",
        "os._exit(0)",
        "os.kill(os.getpid(), 11)",
        "os.close(0); import time; time.sleep(600)",
    ],
)
def test_a_worker_that_talks_nonsense_is_replaced(monkeypatch: pytest.MonkeyPatch, misbehave: str):
    fake(monkeypatch, misbehave)
    with ScoringPool(SPECIALTIES) as pool:
        found = pool.verify(honest(2))
        assert reasons(found) == [RejectionReason.WORKER_DIED] * 2
        assert all(isinstance(v, Rejection) and v.detail.isprintable() and len(v.detail) < 500 for v in found)
        assert pool.kills == 2


def test_t5_the_last_stretch_of_a_worker_that_dies_is_charged(monkeypatch: pytest.MonkeyPatch):
    burn = "end = time.process_time() + 0.5\n    while time.process_time() < end: pass"
    fake(monkeypatch, f"import time; {burn}\n    os._exit(0)")
    with ScoringPool(SPECIALTIES) as pool:
        assert reasons(pool.verify(honest(1))) == [RejectionReason.WORKER_DIED]
        assert pool.busy_s("own") >= 0.5


def test_t5_the_process_that_replaces_a_lost_one_is_charged(monkeypatch: pytest.MonkeyPatch):
    burn = "import time\nwhile time.process_time() < 0.5: pass\n"
    monkeypatch.setattr(worker_process, "_PROGRAM", ("-c", burn + FAKE.format(misbehave="os._exit(0)")))
    with ScoringPool(SPECIALTIES) as pool:
        pool.warm_up()
        assert pool.busy_s("own") == 0.0, "the first ones are there for everybody"
        assert reasons(pool.verify(honest(2))) == [RejectionReason.WORKER_DIED] * 2
        assert pool.busy_s("own") >= 2 * 0.5


def test_answers_nobody_asked_for_do_not_become_somebody_elses(monkeypatch: pytest.MonkeyPatch):
    # In one write, so that the pool reads them together.
    answer = "json.dumps(dict(question='q', ground_truth=None, scores=[1.0, 1.0])).encode()"
    fake(monkeypatch, f"answer = {answer}; os.write(0, 5 * (len(answer).to_bytes(4, 'big') + answer))")
    with ScoringPool(SPECIALTIES, spares=0) as pool:
        pool.verify(honest(1))
        assert pool.kills == 1, "its other answers would be taken for those of the next group"


def test_a_worker_without_progress_is_killed_by_the_time_of_day(monkeypatch: pytest.MonkeyPatch):
    fake(monkeypatch, "import time; time.sleep(600)")
    with ScoringPool(SPECIALTIES, completion_budget_s=0.05, group_budget_s=0.05) as pool:
        assert reasons(pool.verify(honest(2))) == [RejectionReason.TIMEOUT] * 2


def test_a_worker_that_ended_while_idle_costs_no_rollout(monkeypatch: pytest.MonkeyPatch):
    fake(monkeypatch, "answer(question='q', ground_truth='1', scores=[1.0, 0.25])")
    with ScoringPool(SPECIALTIES) as pool:
        assert reasons(pool.verify(honest(1))) == [None]
        (idle,) = pool._supply.lane("own").idle
        os.kill(idle._process.pid, signal.SIGKILL)
        idle._process.wait()
        assert reasons(pool.verify(honest(1))) == [None]
        assert pool.kills == 1


def test_several_workers_share_a_batch(monkeypatch: pytest.MonkeyPatch):
    fake(monkeypatch, "answer(question=str(os.getpid()), ground_truth=None, scores=[1.0, 0.0])")
    with ScoringPool(SPECIALTIES, workers_per_lane=3) as pool:
        pool.warm_up()
        # The program answers one message of however many requests, so each gets one.
        found = pool.verify(honest(3))
        assert len({v.task.question for v in found if isinstance(v, ScoredRollout)}) == 3


@pytest.mark.parametrize(
    ("program", "cause"),
    [
        ("import no_such_module", "No module named 'no_such_module'"),
        ("raise SystemExit(5)", "exit code 5"),
        ("import os; os.write(0, b'\\0\\0\\0\\x02{}')", "something else than that it is ready"),
    ],
)
def test_workers_that_cannot_start_are_one_clear_error(monkeypatch: pytest.MonkeyPatch, program: str, cause: str):
    monkeypatch.setattr(worker_process, "_PROGRAM", ("-c", program))
    with ScoringPool(SPECIALTIES) as pool:
        for call in (pool.warm_up, lambda: pool.verify(honest(1)), lambda: pool.score([(CUBE.ref, ["x"])])):
            with pytest.raises(ScorerStartError, match=f"no scorer process can be started: .*{cause}"):
                call()


def test_a_missing_interpreter_is_one_clear_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with ScoringPool(SPECIALTIES) as pool, pytest.raises(ScorerStartError, match="No such file.*/no/such/python"):
        pool.warm_up()


def test_a_start_that_fails_later_is_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    # Of five starts the third and fourth fail, as for want of memory.
    log = tmp_path / "starts"
    log.touch()
    program = f"""
import os
with open({str(log)!r}, "a") as file:
    file.write("x")
    starts = file.tell()
if starts in (3, 4):
    raise SystemExit(1)
""" + FAKE.format(misbehave="os._exit(0)")
    monkeypatch.setattr(worker_process, "_PROGRAM", ("-c", program))
    with ScoringPool(SPECIALTIES) as pool:
        assert reasons(pool.verify(honest(3))) == [RejectionReason.WORKER_DIED] * 3
    assert log.stat().st_size >= 5


def test_a_closed_pool_says_so(monkeypatch: pytest.MonkeyPatch):
    fake(monkeypatch, "pass")
    pool = ScoringPool(SPECIALTIES)
    pool.warm_up()
    workers = list(pool._supply._workers)
    pool.close()
    pool.close()
    for call in (pool.warm_up, lambda: pool.verify(honest(1))):
        with pytest.raises(ScoringPoolClosedError):
            call()
    assert workers and not any(worker.is_alive for worker in workers)


def test_a_pool_can_be_closed_before_anything_has_started():
    pool = ScoringPool(SPECIALTIES)
    pool.close()
    assert not pool._supply._workers


def test_an_interrupted_call_leaves_no_answers_behind(monkeypatch: pytest.MonkeyPatch):
    def interrupt(talk: object) -> None:
        raise KeyboardInterrupt

    fake(monkeypatch, "answer(question='q', ground_truth=None, scores=[1.0, 0.0])")
    with ScoringPool(SPECIALTIES) as pool:
        pool.warm_up()
        with monkeypatch.context() as patch:
            patch.setattr("sapo_jax.tasks.scoring_pool.Conversation.turn", interrupt)  # before any answer is read
            with pytest.raises(KeyboardInterrupt):
                pool.verify(honest(1))
        assert pool.kills == 1
        assert reasons(pool.verify(honest(1))) == [None]


def test_specialties_reach_the_worker_with_their_settings():
    """A setting that got lost would change the digest, and the worker would not know the task."""
    (gcd,) = resolve("easy", ('gcd:{"min_value": 2, "max_value": 9}',))
    small = dataclasses.replace(gcd, name="small gcd")
    source = ReasoningGymSource((small,))
    (task,) = TaskStream(source=source, specialties=(small,), run_seed=5, node_id="a").take(0, 1).tasks
    with ScoringPool((small,), spares=0) as pool:
        (found,) = pool.verify([rollout(task.ref, tagged(task.ground_truth))])
    assert isinstance(found, ScoredRollout) and found.scores == (1.0,)
    assert (found.task.question, found.task.specialty) == (task.question, "small gcd")
