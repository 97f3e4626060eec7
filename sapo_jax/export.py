"""Writes one node's policy as a folder that transformers loads: `python -m sapo_jax.export --workdir=DIR --out=DIR`.

    [--round=latest|best|N] [--node=0]

The folder holds weights, configuration, tokenizer with chat template, and a model card; `--out` must
not exist yet, or be empty.
"""

from __future__ import annotations

from pathlib import Path

import jax
from absl import flags

from sapo_jax.command import UsageError, run_command
from sapo_jax.models.hf_export import export
from sapo_jax.trained import load_trained

_OPTIONS = flags.FlagValues()
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", flag_values=_OPTIONS)
_OUT = flags.DEFINE_string("out", None, "Folder to write.", flag_values=_OPTIONS)
_ROUND = flags.DEFINE_string("round", "latest", "Which checkpoint: latest, best or rounds.", flag_values=_OPTIONS)
_NODE = flags.DEFINE_integer("node", 0, "Whose policy.", flag_values=_OPTIONS)
flags.mark_flags_as_required(["workdir", "out"], flag_values=_OPTIONS)


def main() -> None:
    """Loads and writes."""
    out = Path(_OUT.value or "").expanduser().absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out={_OUT.value}: exists already and is not an empty folder")
    trained = load_trained(_WORKDIR.value or "", _ROUND.value, node=_NODE.value)
    which = f"node {_NODE.value} after {trained.round} rounds"
    run = Path(_WORKDIR.value or "").absolute().name
    export(
        out,
        trained.model.config,
        jax.device_get(trained.host.params_of(0)),
        trained.model.tokenizer,
        description=f"Run `{run}`, {which}; started from {trained.model.origin}.",
    )
    print(f"wrote {out} ({which})")


if __name__ == "__main__":
    run_command(main, _OPTIONS)
