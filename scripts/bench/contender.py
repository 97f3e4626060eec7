"""One contender at one workload, in a process of its own: `python -m scripts.bench.contender ...`.

Prepares, does the work so many times unmeasured (compilation, caches), then as often as asked and until enough time
is measured, and prints one line of JSON: the seconds of each run, those before the first, the most memory in use, and
what can be checked of the first result.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable

from scripts.bench.processes import resident_peak_bytes
from scripts.bench.workloads import (
    DTYPES,
    MODELS,
    PASS_POSITIONS_CPU,
    WORKLOADS,
    make_inputs,
    make_params,
    select_device,
)
from scripts.peers.packages import PEERS, missing

USUAL = ("ours", "reference", "best_torch")
CONTENDERS = (*USUAL, *PEERS)
SHAPE = ("questions", "group_size", "prompt", "completion")


def main() -> None:
    """Reads the command line, does the work, prints."""
    options = _options()
    if lack := missing(options.contender):
        sys.exit(lack)
    shape = {name: value for name in SHAPE if (value := getattr(options, name))}
    workload, config = dataclasses.replace(WORKLOADS[options.workload], **shape), MODELS[options.model]
    inputs, params = make_inputs(workload, config.vocab_size, options.seed), make_params(config, options.seed)
    begin_s = time.perf_counter()
    if options.contender == "ours":
        run, peak = _ours(options, workload, config, params, inputs)
    elif options.contender == "tunix":
        run, peak = _tunix(options, workload, config, params, inputs)
    else:
        run, peak = _torch(options, workload, config, params, inputs)
    del params
    results, seconds = [run() for _ in range(options.warm_runs)], []
    first_s = time.perf_counter() - begin_s
    while len(seconds) < options.runs or sum(seconds) < options.seconds:
        start_s = time.perf_counter()
        results.append(run())
        seconds.append(time.perf_counter() - start_s)
    checked = results[0]  # later ones have learned
    found = {"seconds": seconds, "before_first_s": first_s, "peak_bytes": peak(), "checked": checked}
    print(json.dumps(found), flush=True)


def _ours(options, workload, config, params, inputs) -> tuple[Callable, Callable[[], int]]:
    from sapo_jax.config import LearnerConfig
    from scripts.bench import ours
    from scripts.bench.floor import peak_memory_bytes

    select_device(options.device)
    group_positions = workload.positions(is_prompt_shared=True) // workload.questions
    most = options.micro_batch_tokens
    if most is None:
        most = PASS_POSITIONS_CPU if options.device == "cpu" else 0
    learner = LearnerConfig(
        micro_batch_groups=options.micro_batch_groups,
        micro_batch_tokens=most and max(most, group_positions),
        remat=options.remat,
        logit_chunk_tokens=options.logit_chunk_tokens,
    )
    run = ours.build(
        workload,
        config,
        params,
        inputs,
        dtype=options.dtype,
        nodes=options.nodes,
        per_program=options.nodes_per_program,
        learner=learner,
    )
    return run, peak_memory_bytes


def _tunix(options, workload, config, params, inputs) -> tuple[Callable, Callable[[], int]]:
    from scripts.bench.floor import peak_memory_bytes
    from scripts.peers import tunix_runner

    select_device(options.device)
    run = tunix_runner.build(workload, config, params, inputs, dtype=options.dtype, seed=options.seed)
    return run, peak_memory_bytes


def _torch(options, workload, config, params, inputs) -> tuple[Callable, Callable[[], int]]:
    import torch

    device = "cuda" if options.device == "gpu" else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device=gpu: torch finds no GPU; is it the CPU build?")
    shared = {"dtype": options.dtype, "device": device}
    if options.contender == "trl":
        from scripts.peers import trl_runner

        run = trl_runner.build(workload, config, params, inputs, seed=options.seed, **shared)
    else:
        from scripts.torch_baseline.build import build

        is_reference = options.contender == "reference"
        run = build(workload, config, params, inputs, is_reference=is_reference, **shared)
    return run, lambda: torch.cuda.max_memory_allocated() if device == "cuda" else resident_peak_bytes()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--contender", choices=CONTENDERS, required=True)
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("--model", choices=MODELS, default="smollm2_135m")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--warm_runs", type=int, default=1)
    parser.add_argument("--runs", type=int, default=1, help="timed, at least")
    parser.add_argument("--seconds", type=float, default=0.0, help="timed, at least")
    parser.add_argument("--seed", type=int, default=0)
    for name in SHAPE:
        parser.add_argument(f"--{name}", type=int, help="instead of the workload's")
    group = parser.add_argument_group("ours")
    group.add_argument("--nodes", type=int, default=1)
    group.add_argument("--nodes_per_program", type=int, default=0, help="0: all")
    group.add_argument("--micro_batch_groups", type=int, default=0, help="at most; 0: no limit")
    group.add_argument(
        "--micro_batch_tokens",
        type=int,
        help=f"at most; 0: no limit, which other devices than CPUs get unless given; CPUs get {PASS_POSITIONS_CPU}",
    )
    group.add_argument("--remat", action=argparse.BooleanOptionalAction, default=True)
    group.add_argument("--logit_chunk_tokens", type=int, default=4096)
    return parser.parse_args()


if __name__ == "__main__":
    main()
