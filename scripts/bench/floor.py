"""What a workload needs at least, in operations and bytes, and how fast XLA does a large one of either here.

FLOPs are those of the matrix products that a workload needs if every prompt is computed once for its group, masked
attention included; an update costs three passes, recomputation left out. Bytes are those that must come from memory:
weights once a decode step and once a pass, the cache as it is read; activations are left out. The floor is the larger
of the two times, summed over the parts of the work.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from sapo_jax.models.architecture import DecoderConfig
from sapo_jax.models.decoder import abstract_params
from scripts.bench.processes import resident_peak_bytes
from scripts.bench.workloads import DTYPES, MODELS, WORKLOADS, Kind, Workload, select_device

MASTER_BYTES = 4  # float32 masters, gradients and moments
ADAM_PASSES = 7  # of the parameters' size: gradient, two moments and weights read, three of them written


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a part of a workload needs at least."""

    flops: float
    bytes: float

    def seconds(self, rates: Rates) -> float:
        """Returns the time at these rates: whichever takes longer, computing or moving."""
        return max(self.flops / rates.flops_per_s, self.bytes / rates.bytes_per_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """What XLA makes of a machine in one large matrix product and in one pass over a long array."""

    flops_per_s: float
    bytes_per_s: float


def parameters(config: DecoderConfig) -> int:
    """Returns how many numbers the model has."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(abstract_params(config)))


def work_of(workload: Workload, config: DecoderConfig, dtype: str) -> list[Work]:
    """Returns the parts of a workload of one node."""
    size = np.dtype(jnp.dtype(dtype)).itemsize
    parts: list[Work] = []
    if workload.kind in (Kind.SAMPLE, Kind.ROUND):
        parts += _sampling(workload, config, size)
    forward = _forward_flops(workload, config)
    weights = parameters(config) * size
    if workload.kind is Kind.SCORE:
        parts.append(Work(flops=forward, bytes=weights))
    if workload.kind in (Kind.UPDATE, Kind.ROUND):
        parts.append(Work(flops=3 * forward, bytes=2 * weights))
        parts.append(Work(flops=0.0, bytes=ADAM_PASSES * MASTER_BYTES * parameters(config)))
    return parts


def pass_flops(config: DecoderConfig, *, questions: int, group_size: int, prompt: int, completion: int) -> float:
    """Returns the FLOPs of one forward pass over Q prompts of P tokens and their G completions of C tokens.

    Sampling them costs one such pass, an update three.
    """
    context = prompt - 1  # the last prompt token is the first input of every completion
    rows = questions * group_size * completion
    pairs = rows * (context + completion)  # of a query and a key
    layer = 2 * _kernels(config) * rows + 4 * config.heads * config.head_size * pairs
    head = 2 * config.width * config.vocab_size * rows
    return float(config.layers * layer + head + _prefill_flops(config, questions, context))


def _prefill_flops(config: DecoderConfig, questions: int, context: int) -> float:
    """Returns the FLOPs of the layers over the prompts alone."""
    pairs = questions * context**2
    return float(
        config.layers * (2 * _kernels(config) * questions * context + 4 * config.heads * config.head_size * pairs)
    )


def _kernels(config: DecoderConfig) -> int:
    """Returns the numbers in the kernels of one layer."""
    attention_width = config.heads * config.head_size
    attention = 2 * config.width * (attention_width + config.kv_heads * config.head_size)
    return attention + 3 * config.width * config.mlp_width


def _sampling(workload: Workload, config: DecoderConfig, size: int) -> list[Work]:
    """Returns prefill and decoding: the same products as one pass, and what each step reads."""
    context = workload.prompt - 1
    prefill = _prefill_flops(config, workload.questions, context)
    weights = parameters(config) * size
    cached = 2 * config.layers * config.kv_heads * config.head_size * size  # bytes of one position's keys and values
    read = workload.questions * context + workload.rows * (workload.completion + 1) / 2  # positions, a step
    return [
        Work(flops=prefill, bytes=float(weights)),
        Work(
            flops=_forward_flops(workload, config) - prefill,
            bytes=float(workload.completion * (weights + cached * read)),
        ),
    ]


def _forward_flops(workload: Workload, config: DecoderConfig) -> float:
    return pass_flops(
        config,
        questions=workload.questions,
        group_size=workload.group_size,
        prompt=workload.prompt,
        completion=workload.completion,
    )


def measure_rates(dtype: str, repeats: int = 5) -> Rates:
    """Returns what this process's device does: the best of some repeats."""
    on_cpu = jax.default_backend() == "cpu"
    size = 2048 if on_cpu else 8192
    x = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
    long = jnp.ones((64 if on_cpu else 512, 2**20), jnp.float32)
    # What is read alone, and what is read and written where it lies: a fresh result would time the system's paging.
    total = jax.jit(jnp.sum)
    read_s = _best_s(lambda: total(long), repeats)
    raised = jax.jit(lambda a: a + 1.0, donate_argnums=0)
    nbytes = long.nbytes

    def raise_all() -> jax.Array:
        nonlocal long
        long = raised(long)
        return long

    return Rates(
        flops_per_s=2 * size**3 / _best_s(lambda: product(x, x), repeats),
        bytes_per_s=max(nbytes / read_s, 2 * nbytes / _best_s(raise_all, repeats)),
    )


def peak_memory_bytes() -> int:
    """Returns the most memory in use at one time so far: of the device, or of the process on a CPU."""
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    return resident_peak_bytes()


def _best_s(call, repeats: int) -> float:
    jax.block_until_ready(call())
    best = float("inf")
    for _ in range(repeats):
        start_s = time.perf_counter()
        jax.block_until_ready(call())
        best = min(best, time.perf_counter() - start_s)
    return best


def main() -> None:
    """Prints the rates of this machine and what each workload needs at least, as one line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--workload", choices=WORKLOADS, action="append", required=True)
    parser.add_argument("--model", choices=MODELS, default="smollm2_135m")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    options = parser.parse_args()
    select_device(options.device)
    rates, config = measure_rates(options.dtype), MODELS[options.model]
    floors = {}
    for name in options.workload:
        parts = work_of(WORKLOADS[name], config, options.dtype)
        floors[name] = {
            "flops": sum(part.flops for part in parts),
            "bytes": sum(part.bytes for part in parts),
            "seconds": sum(part.seconds(rates) for part in parts),
        }
    device = jax.devices()[0].device_kind
    print(json.dumps({"rates": dataclasses.asdict(rates), "device": device, "workloads": floors}), flush=True)


if __name__ == "__main__":
    main()
