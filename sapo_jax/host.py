"""The host: device arrays of M nodes of one architecture, and the compiled sampler and update.

Arrays carry a leading node axis. The nodes are cut into programs of `nodes_per_program` nodes that
are computed together in one compiled call; all programs share one compilation. Text, tasks and the
exchange are unknown here.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from sapo_jax.algo.losses import MetricSums
from sapo_jax.config import LearnerConfig, SapoConfig
from sapo_jax.device_clock import DeviceClock
from sapo_jax.learner.optimizer import make_optimizer, no_optimizer
from sapo_jax.learner.step import Batch, TrainState, init_state, update
from sapo_jax.models import sharding
from sapo_jax.models.architecture import DecoderConfig
from sapo_jax.models.decoder import Params, abstract_params
from sapo_jax.models.node_axis import over_nodes
from sapo_jax.sampling.decode import Prompts, Samples, sample
from sapo_jax.text.encode import EncodedPrompts

NodeMetrics = dict[str, float]


class SampledRow(NamedTuple):
    """One completion as tokens: ids with the end token if `stopped`, and the log-prob of each."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool


class Host:
    """Owns the train states of M nodes and the functions compiled for them."""

    def __init__(
        self,
        config: SapoConfig,
        model: DecoderConfig,
        params: Params,
        *,
        end_id: int,
        dtype: jnp.dtype,
        nodes_per_program: int,
        learning: bool = True,
        say: Callable[[str], object] = lambda line: None,
    ) -> None:
        """Starts every node from `params` (one node, no node axis).

        A host that is not `learning` keeps no optimizer state and no reference: it can only sample.
        `say` is told of every program before it is compiled, or found among those compiled before.
        """
        self.model = model
        self.config = config
        self.traces: Counter[str] = Counter()  # programs made so far, by kind
        self._say = say
        self._clock = DeviceClock()
        self._end_id = end_id
        self._dtype = dtype
        self._per_program = nodes_per_program
        self._mesh = sharding.make_mesh(
            node=config.host.mesh_node,
            data=config.host.mesh_data,
            fsdp=config.host.mesh_fsdp,
            tensor=config.host.mesh_tensor,
        )
        self._learning = learning
        self._optimizer = make_optimizer(config.learner, config.rounds) if learning else no_optimizer()
        # States stay laid out as they begin, and as a checkpoint brings them back: another layout that means the
        # same would be another program to the compilation cache, and a resumed run would compile all over again.
        layout, results = self._layout(), self._results_sharding()
        self._sampler = jax.jit(self._sample, static_argnames=("group_size",), out_shardings=results)
        self._updater = jax.jit(self._update, donate_argnums=0, out_shardings=(layout, results))
        self._supervisor = jax.jit(self._supervise, donate_argnums=0, out_shardings=layout)
        self._restart = jax.jit(self._fresh, out_shardings=layout[1:])
        self._references: list[Params] | None = None
        self._states: list[TrainState] = []
        for _ in range(config.nodes // nodes_per_program):
            placed = self._place_params(params)
            self._states.append(TrainState(placed, *self._restart(placed)))
        self._keep_references()

    @property
    def nodes(self) -> int:
        """M."""
        return self.config.nodes

    @property
    def arrays(self) -> dict[str, Any]:
        """Everything on the devices that a resumed run needs, as a pytree of dicts and lists."""
        states = [state._asdict() for state in self._states]
        if not self._learning:  # dict entries may be left out when a checkpoint is restored
            states = [{"params": state["params"]} for state in states]
        return {"states": states} | ({"references": self._references} if self._references else {})

    def release_arrays(self) -> dict[str, Any]:
        """Frees `arrays` and returns their shapes, dtypes and shardings, to restore others in their place."""
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), self.arrays)
        self._states, self._references = [], None
        return shapes

    def load_arrays(self, arrays: dict[str, Any]) -> None:
        """Takes over arrays of the structure of `arrays`."""
        blank = {"opt_state": (), "updates": None}
        self._states = [TrainState(**(blank | state)) for state in arrays["states"]]
        self._references = list(arrays["references"]) if "references" in arrays else None

    def params_of(self, node: int) -> Params:
        """Returns the parameters of one node, without node axis."""
        program, row = divmod(node, self._per_program)
        return jax.tree.map(lambda x: x[row], self._states[program].params)

    def sample(
        self, prompts: Sequence[EncodedPrompts], seeds: Sequence[int], temperature: float, *, group_size: int
    ) -> list[list[list[SampledRow]]]:
        """Returns `group_size` completions for each question of each node: [M][Q][G].

        Args:
            prompts: one batch [Q, P] per node, left-padded, all of the same shape.
            seeds: M uint32 seeds.
            temperature: 0 asks for the likeliest token each time.
        """
        return [rows for some in self.start_sample(prompts, seeds, temperature, group_size=group_size) for rows in some]

    def start_sample(
        self, prompts: Sequence[EncodedPrompts], seeds: Sequence[int], temperature: float, *, group_size: int
    ) -> Iterator[list[list[list[SampledRow]]]]:
        """Dispatches what `sample` does; returns one [M'][Q][G] per program of M' nodes, waiting for each when read."""
        pending = []
        for program, state in enumerate(self._states):
            rows = slice(program * self._per_program, (program + 1) * self._per_program)
            batch = Prompts(
                tokens=np.stack([p.tokens for p in prompts[rows]]),
                mask=np.stack([p.prompt_mask for p in prompts[rows]]),
                positions=np.stack([p.prompt_positions for p in prompts[rows]]),
            )
            batch = self._put(batch, sharding.batch_sharding(self._mesh))
            seed = np.asarray(seeds[rows], np.uint32)
            began_s = time.perf_counter()
            samples = self._sampler(state.params, batch, seed, np.float32(temperature), group_size=group_size)
            self._clock.watch(began_s, samples)
            pending.append(samples)
        return (_rows(self._read(samples)) for samples in pending)

    def update(self, batches: Sequence[Batch]) -> list[NodeMetrics]:
        """Applies one update to every node, `batches[n]` to node n, and returns each node's metrics.

        All batches have the same shapes, as numpy arrays.
        """
        return list(self.start_update(batches))

    def start_update(self, batches: Sequence[Batch]) -> Iterator[NodeMetrics]:
        """Dispatches what `update` does and returns each node's metrics, waiting for them when read."""
        pending = []
        for program, stacked in enumerate(self._stack(batches)):
            reference = self._references[program] if self._references else None
            began_s = time.perf_counter()
            self._states[program], sums = self._updater(self._states[program], stacked, reference)
            self._clock.watch(began_s, sums)  # the state may be given to the next update before anyone looks
            pending.append(sums)
        return (metrics for sums in pending for metrics in _means(self._read(sums), self._per_program))

    def busy_s(self) -> float:
        """Returns the seconds in which sampling or an update was pending so far, as `DeviceClock` measures them."""
        return self._clock.busy_s()

    def supervise(self, batches: Sequence[Batch]) -> None:
        """Applies one supervised step to every node: every completion of its batch is a target."""
        for program, stacked in enumerate(self._stack(batches)):
            self._states[program] = self._supervisor(self._states[program], stacked)

    def begin(self) -> None:
        """Makes the present policies those of round 0: fresh optimizers, and the KL penalty's reference."""
        for program, state in enumerate(self._states):
            self._states[program] = TrainState(state.params, *self._restart(state.params))
        self._keep_references()

    def _keep_references(self) -> None:
        if self._learning and self.config.learner.kl_coef > 0:
            # A copy, since updates donate the state.
            self._references = [jax.tree.map(jnp.copy, state.params) for state in self._states]

    def _sample(
        self, params: Params, prompts: Prompts, seeds: jax.Array, temperature: jax.Array, *, group_size: int
    ) -> Samples:
        self._note_program("sample", prompts.tokens, (group_size, self.config.sampling.max_new_tokens))
        settings = self.config.sampling
        return sample(
            self.model,
            params,
            prompts,
            seeds,
            temperature,
            end_id=self._end_id,
            group_size=group_size,
            max_new_tokens=settings.max_new_tokens,
            top_k=settings.top_k,
            top_p=settings.top_p,
            min_p=settings.min_p,
            dtype=self._dtype,
        )

    def _update(self, state: TrainState, batch: Batch, reference: Params | None) -> tuple[TrainState, MetricSums]:
        self._note_program("update", batch.prompt_tokens, batch.completion_tokens.shape[2:])
        one_node = partial(
            update,
            model=self.model,
            settings=self.config.learner,
            optimizer=self._optimizer,
            temperature=self.config.sampling.temperature,
            max_new_tokens=self.config.sampling.max_new_tokens,
            dtype=self._dtype,
        )
        return over_nodes(one_node)(state, batch, reference)

    def _supervise(self, state: TrainState, batch: Batch) -> TrainState:
        self._note_program("supervise", batch.prompt_tokens, batch.completion_tokens.shape[2:])
        settings = LearnerConfig(learning_rate=self.config.cold_start.learning_rate, remat=self.config.learner.remat)
        optimizer = make_optimizer(settings, rounds=0)

        def one_node(state: TrainState, batch: Batch) -> TrainState:
            advantages = batch.valid.astype(jnp.float32)
            return update(
                state,
                batch,
                None,
                model=self.model,
                settings=settings,
                optimizer=optimizer,
                temperature=1.0,
                max_new_tokens=self.config.sampling.max_new_tokens,
                dtype=self._dtype,
                advantages=advantages,
            )[0]

        return over_nodes(one_node)(state, batch)

    def _note_program(self, kind: str, prompts: jax.Array, completions: tuple[int, ...]) -> None:
        """Counts and announces a program for prompts [M, Q, P] and completions [G, C]; runs while JAX traces it."""
        self.traces[kind] += 1
        nodes, questions, length = prompts.shape
        group_size, completion = completions
        self._say(
            f"program: {kind}, {nodes} x {questions} prompts of {length} tokens, {group_size} x {completion} new ones"
        )

    def _stack(self, batches: Sequence[Batch]) -> list[Batch]:
        """Returns one device batch [M', ...] per program."""
        stacked = []
        for first in range(0, self.nodes, self._per_program):
            rows = batches[first : first + self._per_program]
            arrays = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
            stacked.append(self._put(arrays, sharding.batch_sharding(self._mesh)))
        return stacked

    def _place_params(self, params: Params) -> Params:
        """Returns `params` [M', ...] for one program of M' nodes, on its devices."""
        shardings = sharding.param_shardings(self.model, self._mesh)
        stacked = jax.tree.map(lambda x: np.broadcast_to(x, (self._per_program, *x.shape)), params)
        # A copy in any case: updates donate these arrays, and programs must not share the source's memory.
        return self._put(stacked, shardings, may_alias=False)

    def _put(self, arrays: Any, shardings: Any, *, may_alias: bool | None = None) -> Any:
        """Returns numpy `arrays` on the devices; a host of several processes does it otherwise."""
        return jax.device_put(arrays, shardings, may_alias=may_alias)

    def _read(self, results: Any) -> Any:
        """Returns the results of a program as numpy arrays, waiting for them."""
        return jax.device_get(results)

    def _results_sharding(self) -> NamedSharding | None:
        """Returns where samples and metrics lie, None: the compiler chooses; several processes need copies."""
        return None

    def _fresh(self, params: Params) -> tuple[Any, jax.Array]:
        """Returns fresh optimizer states and update counts for one program's parameters."""
        return over_nodes(partial(init_state, optimizer=self._optimizer))(params)[1:]

    def _layout(self) -> TrainState:
        """Returns the sharding of every array in one program's state."""
        shardings = sharding.param_shardings(self.model, self._mesh)
        stacked = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((self._per_program, *x.shape), x.dtype), abstract_params(self.model)
        )
        rest = sharding.like_params(jax.eval_shape(self._fresh, stacked), shardings, self._mesh)
        return TrainState(shardings, *rest)


def _rows(samples: Samples) -> list[list[list[SampledRow]]]:
    """Returns numpy samples [M, Q, G, C] as nested lists, cut to their lengths."""

    def row(index: tuple[int, ...]) -> SampledRow:
        length = int(samples.lengths[index])
        return SampledRow(
            tuple(samples.tokens[index][:length].tolist()),
            tuple(samples.logprobs[index][:length].tolist()),
            bool(samples.stopped[index]),
        )

    m, q, g = samples.lengths.shape
    return [[[row((i, j, k)) for k in range(g)] for j in range(q)] for i in range(m)]


def _means(sums: MetricSums, nodes: int) -> list[NodeMetrics]:
    """Returns one dict a node of total / count, leaving out what nothing was counted for."""
    return [
        {name: float(total[n] / count[n]) for name, (total, count) in sums.items() if count[n] > 0}
        for n in range(nodes)
    ]
