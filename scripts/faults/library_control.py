"""Shows which texts the task library itself would run: `python -m scripts.faults.library_control FOLDER`.

The control of `verifier`: exploits that do nothing anywhere would prove nothing. Runs in a process of
its own and leaves marker files in FOLDER.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from reasoning_gym.factory import create_dataset, get_score_answer_fn

from scripts.faults.exploits import CODE_PATHS, code_that_writes

# Which entry of its metadata the library runs.
_RUN_METADATA = {
    "bitwise_arithmetic": "problem",
    "simple_integration": "integrand",
    "intermediate_integration": "integrand",
}


def runs(dataset: str, place: str, folder: Path) -> bool:
    """Returns whether the library's scorer runs one of our texts as the answer, the truth or metadata."""
    marker = folder / f"{dataset}_{place}"
    for code in code_that_writes(marker):
        entry: dict[str, Any] = dict(create_dataset(dataset, seed=3, size=1)[0])
        entry["metadata"] = dict(entry["metadata"])
        answer = str(entry["answer"])
        if place == "answer":
            answer = code
        elif place == "truth":
            entry["answer"] = code
        else:
            entry["metadata"][_RUN_METADATA[dataset]] = code
        with contextlib.suppress(Exception):
            get_score_answer_fn(dataset)(answer, entry)  # pyright: ignore[reportCallIssue]
        if marker.exists():
            return True
    return False


def main() -> None:
    """Prints which paths run text, as JSON."""
    folder = Path(sys.argv[1])
    print(json.dumps([[*path, runs(*path, folder)] for path in CODE_PATHS]))


if __name__ == "__main__":
    main()
