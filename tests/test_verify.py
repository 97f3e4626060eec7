"""The command that lists who scores what."""

from __future__ import annotations

from reasoning_gym.factory import DATASETS

from tests.e2e.runs import call


def test_every_dataset_has_one_line() -> None:
    outcome = call("verify", "--list")
    assert outcome.code == 0 and outcome.err == ""
    heading, *lines, total, network = outcome.out.splitlines()
    assert heading.split() == ["dataset", "allowed", "scored", "by", "rebuilt", "answers", "why"]
    assert [line.split()[0] for line in lines] == sorted(DATASETS)
    assert total.startswith(f"{len(DATASETS)} datasets: ") and "1 by nobody" in total
    assert network.startswith(("Scorer processes have no network", "Scorer processes keep the network"))
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in lines}
    assert rows["gcd"] == "yes library everywhere one runs no text and bounds its work"
    assert rows["n_queens"].startswith("yes own scorer everywhere one the library runs the answer as Python code")
    assert rows["rush_hour"].startswith("yes repaired library everywhere many ")
    assert rows["ransom_note"].startswith("yes library PYTHONHASHSEED=0 one ")
    assert rows["composite"].startswith("no nobody ")


def test_piped_output_is_plain_text() -> None:
    assert call("verify", "--list").out.isprintable() is False  # new lines, and nothing else that moves a cursor
    assert call("verify", "--list").out.replace("\n", "").isprintable()


def test_nothing_to_do_is_said() -> None:
    outcome = call("verify")
    assert outcome.code == 2 and "--list" in outcome.err
