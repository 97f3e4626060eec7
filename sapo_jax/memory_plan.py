"""How much memory a run needs at least, counted from its shapes before anything is compiled.

Counted is what surely exists at one time: the state that is always kept, and on top of it the largest of
the phases, which take turns. Left out is what depends on the compiler or is small: its further copies and
gaps, the libraries of the process (about half a GiB), text, and the copy of a checkpoint that is being
written. A run whose plan does not fit fails at the latest with prompts of the longest bucket, which it has to take;
one whose plan just fits may still fail.

Letters as in WORKSPACE.md; S = P - 1 is the context of a prompt. Bytes are those of one device, or of all
devices of this process where these share a memory (CPU).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import jax
import numpy as np
from jax.sharding import Mesh

from sapo_jax.config import LearnerConfig, SapoConfig
from sapo_jax.models import sharding
from sapo_jax.models.architecture import DecoderConfig
from sapo_jax.models.decoder import abstract_params

WIDE = 4  # bytes of a float32 number: masters, gradients, moments, softmax weights, logits


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPlan:
    """Bytes by part.

    Attributes:
        state: what is kept all the time: weights, moments, reference.
        phases: those of update, sampling, evaluation and cold start that will come, with what each needs beside
            the state; one of them exists at a time.
    """

    state: Mapping[str, int]
    phases: Mapping[str, Mapping[str, int]]

    @property
    def state_bytes(self) -> int:
        """What is kept all the time."""
        return sum(self.state.values())

    @property
    def largest_phase(self) -> str:
        """The phase that needs most, "" if there is none."""
        return max(self.phases, key=self.phase_bytes, default="")

    @property
    def needed_bytes(self) -> int:
        """The state and the largest phase."""
        return self.state_bytes + self.phase_bytes(self.largest_phase)

    def phase_bytes(self, phase: str) -> int:
        """What `phase` needs beside the state."""
        return sum(self.phases.get(phase, {}).values())

    def only(self, *phases: str) -> MemoryPlan:
        """Returns the plan of a host that no other phases come to."""
        return replace(self, phases={name: parts for name, parts in self.phases.items() if name in phases})


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """What one pass computes together: Q questions of S context tokens, G completions each of C tokens."""

    questions: int
    group_size: int
    context: int
    completion: int

    @property
    def generated(self) -> int:
        """Completion tokens."""
        return self.questions * self.group_size * self.completion

    @property
    def tokens(self) -> int:
        """All tokens: every prompt once."""
        return self.questions * self.context + self.generated


def plan_memory(
    config: SapoConfig,
    model: DecoderConfig,
    mesh: Mesh,
    *,
    compute_dtype: str,
    nodes_per_program: int,
    learning: bool = True,
) -> MemoryPlan:
    """Returns what a run needs on the devices of `mesh`; without `learning`, what sampling for its rounds needs.

    Prompts and completions are counted at their longest: which lengths are met is decided by the texts, also those
    of others. (Of shorter groups a pass takes more under `learner.micro_batch_tokens`, up to that many positions.)
    """
    size = np.dtype(jax.numpy.dtype(compute_dtype)).itemsize
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    # The devices of a CPU lie in one memory; other processes of a group have memories of their own.
    together = sum(device.process_index == jax.process_index() for device in mesh.devices.flat) if on_cpu else 1
    weights = _params_bytes(model, mesh, nodes_per_program)
    share = _Share(nodes=nodes_per_program // mesh.shape["node"], model=_on_one_device(model, mesh), size=size)

    def rows(questions: int, group_size: int) -> Rows:
        return Rows(
            questions=-(-questions // mesh.shape["data"]),
            group_size=group_size,
            context=config.sampling.max_prompt_tokens - 1,
            completion=config.sampling.max_new_tokens,
        )

    def update(questions: int, group_size: int, passes: int, logit_chunk_tokens: int) -> dict[str, int]:
        # A pass makes gradients of its own, which are added to those of the passes before.
        gradients = {"gradients": min(passes, 2) * weights}
        return gradients | share.update(rows(questions, group_size), logit_chunk_tokens, remat=config.learner.remat)

    def sampling(questions: int, group_size: int) -> dict[str, int]:
        # Decoding reads kernels in the compute dtype and a tied head transposed; on CPUs, layers lie one by one.
        as_it_is = [] if model.tie_embeddings else ["embed", "head"] if size == WIDE else ["embed"]
        kernels = _params_bytes(model, mesh, nodes_per_program, but=as_it_is)
        copied = {"a copy of the weights": kernels * size // WIDE} if on_cpu or size < WIDE else {}
        return copied | share.sampling(rows(questions, group_size))

    kept = config.nodes // nodes_per_program * weights
    state, group_size = {"weights": kept}, config.sampling.group_size
    phases = {"sampling": sampling(config.sharing.local, group_size)}
    if learning:
        learner = config.learner
        questions = learner.groups_per_pass(config.train_groups, config.group_tokens)
        state |= {"moments": 2 * kept} | ({"reference": kept} if learner.kl_coef > 0 else {})
        phases["update"] = update(questions, group_size, config.train_groups // questions, learner.logit_chunk_tokens)
        phases["evaluation"] = sampling(config.eval.questions_per_call or config.sharing.local, group_size)
        if config.cold_start.steps:  # see Host._supervise
            phases["cold start"] = update(config.cold_start.batch_rows, 1, 1, LearnerConfig().logit_chunk_tokens)
    return MemoryPlan(
        state=_times(together, state), phases={name: _times(together, parts) for name, parts in phases.items()}
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Share:
    """The part of a program that one device computes: its nodes, its share of the dimensions, bytes of a number."""

    nodes: int
    model: DecoderConfig
    size: int

    def update(self, rows: Rows, chunk: int, *, remat: bool) -> dict[str, int]:
        """Returns what the forward and backward pass over `rows` keeps, without the gradients."""
        layers, logits = self.model.layers, min(chunk, rows.generated) * self.model.vocab_size * WIDE
        if remat:
            kept = layers * rows.tokens * self.model.width * self.size
            passing = _layer_bytes(self.model, rows, self.size)  # one layer's at a time
        else:
            kept, passing = layers * _layer_bytes(self.model, rows, self.size), 0
        # Logits and their gradients exist before the layers go back, and are gone then.
        return _times(self.nodes, {"activations": kept + max(0, passing - 2 * logits), "logits": 2 * logits})

    def sampling(self, rows: Rows) -> dict[str, int]:
        """Returns what decoding `rows` to the limit keeps."""
        position = 2 * self.model.layers * self.model.kv_heads * self.model.head_size * self.size
        prompts = position * rows.questions * rows.context
        completions = position * rows.generated
        logits = rows.questions * rows.group_size * self.model.vocab_size * WIDE
        scores = rows.questions * self.model.heads * rows.context**2 * WIDE  # of a layer of the prefill
        decoding = {"prompt cache": prompts, "completion cache": completions, "logits": logits}
        prefill = {"prompt cache": prompts, "prefill": scores}
        return _times(self.nodes, max(decoding, prefill, key=lambda parts: sum(parts.values())))


def _layer_bytes(model: DecoderConfig, rows: Rows, size: int) -> int:
    """Returns what the backward pass of one layer reads of its forward pass, as differentiation keeps it."""
    heads, keys = model.heads * model.head_size, model.kv_heads * model.head_size
    stream = (5 * size + 2 * WIDE) * model.width  # inputs of norms (wide) and of products
    # Gate, its sigmoid and activation, up; their product, down's input.
    mlp = (4 * WIDE + 2 * size) * model.mlp_width
    per_token = stream + mlp + size * heads
    cached = size * keys * (4 * rows.questions * rows.context + 2 * rows.generated)
    pairs = rows.questions * rows.context**2 + rows.generated * (rows.context + rows.completion)
    weights = (WIDE + size) * model.heads * pairs  # of attention, as computed and as multiplied
    return rows.tokens * per_token + cached + weights


def _params_bytes(model: DecoderConfig, mesh: Mesh, nodes: int, but: Collection[str] = ()) -> int:
    """Returns the bytes of one program's float32 parameters on one device, all `but` those of these names."""
    shardings = sharding.param_shardings(model, mesh)
    shards = jax.tree.map(lambda leaf, s: s.shard_shape((nodes, *leaf.shape)), abstract_params(model), shardings)
    shards = {name: part for name, part in shards.items() if name not in but}
    return sum(WIDE * math.prod(shape) for shape in jax.tree.leaves(shards, is_leaf=lambda x: isinstance(x, tuple)))


def _on_one_device(model: DecoderConfig, mesh: Mesh) -> DecoderConfig:
    """Returns the dimensions of one device's share; an axis that does not divide a dimension leaves it whole."""

    def share(count: int, axis: str) -> int:
        return count // mesh.shape[axis] if count % mesh.shape[axis] == 0 else count

    axes = {"width": "fsdp", "mlp_width": "tensor", "vocab_size": "tensor", "heads": "tensor", "kv_heads": "tensor"}
    shares = {name: share(getattr(model, name), axis) for name, axis in axes.items()}
    # Query heads may be divided where key heads are not: then some devices hold the same ones.
    shares["kv_heads"] = math.gcd(shares["heads"], shares["kv_heads"])
    return replace(model, **shares)


def _times(factor: int, parts: Mapping[str, int]) -> dict[str, int]:
    return {name: factor * value for name, value in parts.items()}
