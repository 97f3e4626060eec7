"""A real swarm in seconds: two nodes of a tiny model from random weights, no download.

    python -m sapo_jax.main --config=configs/tiny.py:4_4 --workdir=runs/tiny

Hardware: one CPU core is enough. Made for tests and for trying out commands.
"""

from ml_collections import ConfigDict

from sapo_jax import presets
from sapo_jax.config import default_config_dict


def get_config(arg: str = "") -> ConfigDict:
    config = default_config_dict()
    presets.apply(config, "paper")
    config.rounds = 20
    config.model.source = "init:qwen2"
    config.text.system_prompt = ""
    config.tasks.catalog = "easy"
    config.tasks.specialties = ("chain_sum", "leap_year")
    config.tasks.shots = 0
    config.sampling.prompt_buckets = (128,)
    config.sampling.max_new_tokens = 8
    config.sharing.local = 4
    config.sharing.external = 4
    config.learner.learning_rate = 1e-3
    config.learner.remat = False
    config.cold_start.steps = 60
    config.eval.every_rounds = 10
    config.eval.questions = 8
    config.eval.samples = 8
    config.checkpoint.every_rounds = 10
    presets.apply_sharing(config, arg)
    return config.lock()
