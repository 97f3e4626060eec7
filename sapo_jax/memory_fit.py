"""What to say of a memory plan: in one line, or that it does not fit and what to change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from sapo_jax.config import ConfigError, SapoConfig
from sapo_jax.machine_memory import total_bytes
from sapo_jax.memory_plan import MemoryPlan

GIB = 2**30

OUT_OF_MEMORY_ADVICE = (
    "lower config.learner.micro_batch_groups or config.learner.micro_batch_tokens, config.learner.logit_chunk_tokens, "
    "config.host.nodes_per_program or config.nodes, or set config.learner.remat=True"
)


def memory_limit_bytes(device: Any) -> int | None:
    """Returns the most memory that JAX may take for arrays on `device`, one of JAX's; None if nothing says so.

    An accelerator says it itself; on a GPU it is the share that JAX reserves. All devices of a CPU
    share the memory of the machine, or of the container if that is less, and so does everybody else.
    """
    if device.platform != "cpu":
        limit = (device.memory_stats() or {}).get("bytes_limit")
        return None if limit is None else int(limit)
    return total_bytes()


def check_fit(plan: MemoryPlan, config: SapoConfig, *, nodes_per_program: int, say: Callable[[str], object]) -> None:
    """Makes sure that the plan fits into this process's devices, and says both in one line.

    Raises:
        ConfigError: see `require_fit`.
    """
    limit = memory_limit_bytes(jax.local_devices()[0])
    require_fit(plan, limit, config, nodes_per_program=nodes_per_program)
    say(describe(plan, limit))


def describe(plan: MemoryPlan, limit: int | None) -> str:
    """Returns the plan in one line; `limit` is how many bytes there are, None if unknown."""
    parts = [f"{_joined(list(plan.state), 'and')} {_gib(plan.state_bytes)} GiB"]
    parts += [f"{name} {_gib(plan.phase_bytes(name))}" for name in plan.phases]
    return f"memory, at least: {', '.join(parts)}" + ("" if limit is None else f"; {_gib(limit)} here")


def require_fit(plan: MemoryPlan, limit: int | None, config: SapoConfig, *, nodes_per_program: int) -> None:
    """Makes sure that the plan fits into `limit` bytes; None, unknown, fits everything.

    Raises:
        ConfigError: it does not; the message names what takes most, both amounts, and which keys to change.
    """
    if limit is None or plan.needed_bytes <= limit:
        return
    phase = "" if plan.state_bytes > limit else plan.largest_phase
    parts = plan.phases[phase] if phase else plan.state
    largest = sorted(parts, key=lambda name: -parts[name])
    first, *others = _keys(phase, largest[0], config, nodes_per_program)
    change = _joined(["it", *others], "or") if others else "it"
    raise ConfigError(
        f"{first}: this needs at least {_gib(plan.needed_bytes)} GiB of memory and there are {_gib(limit)}; "
        f"{phase or 'what is kept all the time'} takes {_gib(sum(parts.values()))} of them "
        f"({', '.join(f'{name} {_gib(parts[name])}' for name in largest)}); change {change}"
    )


def _keys(phase: str, part: str, config: SapoConfig, nodes_per_program: int) -> list[str]:
    """Returns the keys that make `part` of `phase` ("": of the state) smaller, the most useful first, its value too."""
    sampling, learner = config.sampling, config.learner
    questions = learner.groups_per_pass(config.train_groups, config.group_tokens)
    passes = ("config.learner.micro_batch_groups", questions, questions > 1)
    if learner.micro_batch_tokens and questions < (learner.micro_batch_groups or config.train_groups):
        passes = ("config.learner.micro_batch_tokens", learner.micro_batch_tokens, questions > 1)
    lengths = [
        ("config.sampling.group_size", sampling.group_size, sampling.group_size > 2),
        ("config.sampling.prompt_buckets", sampling.prompt_buckets, sampling.max_prompt_tokens > 1),
        ("config.sampling.max_new_tokens", sampling.max_new_tokens, sampling.max_new_tokens > 1),
    ]
    nodes = ("config.nodes", config.nodes, config.nodes > 1)
    together = ("config.host.nodes_per_program", nodes_per_program, nodes_per_program > 1)
    recompute = ("config.learner.remat", learner.remat, not learner.remat)
    smaller = ("config.model.source", config.model.source, True)  # always possible, never the first wish
    if not phase:
        keys = [nodes, ("config.learner.kl_coef", learner.kl_coef, part == "reference"), smaller]
    elif part in ("gradients", "a copy of the weights"):
        keys = [together, nodes, smaller]
    elif phase == "cold start":
        keys = [("config.cold_start.batch_rows", config.cold_start.batch_rows, True), recompute, together]
    elif phase == "evaluation":
        per_call = config.eval.questions_per_call or config.sharing.local
        keys = [("config.eval.questions_per_call", per_call, per_call > 1), *lengths, together]
    elif phase == "sampling":
        keys = [together, ("config.sharing.local", config.sharing.local, config.sharing.local > 1), *lengths]
    elif part == "logits":
        keys = [("config.learner.logit_chunk_tokens", learner.logit_chunk_tokens, True), together]
    else:
        keys = [passes, recompute, together, *lengths]
    if nodes not in keys:
        keys.append(nodes)  # leaves more room beside the state
    found = [(key, value) for key, value, helps in keys if helps] or [smaller[:2]]
    return [f"{found[0][0]} = {found[0][1]!r}", *(key for key, _ in found[1:])]


def _gib(value: int) -> str:
    return f"{value / GIB:.1f}" if value >= GIB / 10 else f"{value / GIB:.2g}"


def _joined(names: Sequence[str], last: str) -> str:
    return f" {last} ".join(filter(None, (", ".join(names[:-1]), names[-1])))
