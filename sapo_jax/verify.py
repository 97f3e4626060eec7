"""Shows what text of strangers is judged by: `python -m sapo_jax.verify --list`.

One line for every ReasoningGym dataset: whether completions of others are judged at all, by whose
program and why, whether every process can rebuild its tasks from their references, and whether a
task has one ground truth. It reads no run and needs no model; the output may be piped.
"""

from __future__ import annotations

from collections import Counter

from absl import flags
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sapo_jax.command import UsageError, run_command
from sapo_jax.tasks.audit import AuditedDataset, ScoredBy, audit
from sapo_jax.tasks.confinement import can_leave_network

_PIPED_WIDTH = 200  # columns; nothing wraps, so that a line stays a dataset

_OPTIONS = flags.FlagValues()
_LIST = flags.DEFINE_bool("list", False, "List all datasets.", flag_values=_OPTIONS)


def main() -> None:
    """Prints the table."""
    if not _LIST.value:
        raise UsageError("give --list; --help explains")
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPED_WIDTH)
    datasets = audit()
    console.print(_table(datasets))
    counts = Counter(dataset.scored_by for dataset in datasets)
    parts = ", ".join(f"{counts[scored_by]} by {scored_by.value}" for scored_by in ScoredBy)
    console.print(Text(f"{len(datasets)} datasets: {parts}"))
    network = "have no network" if can_leave_network() else "keep the network: this system does not let them leave it"
    console.print(Text(f"Scorer processes {network}."))


def _table(datasets: list[AuditedDataset]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("dataset", "allowed", "scored by", "rebuilt", "answers"):
        table.add_column(heading, no_wrap=True)
    table.add_column("why")
    for dataset in datasets:
        table.add_row(
            dataset.name,
            "yes" if dataset.allowed else "no",
            dataset.scored_by.value,
            "PYTHONHASHSEED=0" if dataset.needs_hash_seed else "everywhere",
            "one" if dataset.has_ground_truth else "many",
            dataset.reason,
        )
    return table


if __name__ == "__main__":
    run_command(main, _OPTIONS)
