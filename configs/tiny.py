"""A real swarm in a minute or two: two nodes of a tiny model from random weights, no download.

    python -m sapo_jax.main --config=configs/tiny.py:4_4 --workdir=runs/tiny

Variants: :8_0 (no sharing), :6_2, :4_4 (also without a variant), :2_6.

Hardware: one CPU core is enough. Duration: one to two minutes, most of it compilation and evaluation.
What to expect: the cold start teaches the answer format, so the format rate is near one from the
start; the question "is it a leap year?" is answered right about half of the time by chance. Made
for tests and for trying out commands; what it learns says nothing about the method.
"""

from ml_collections import ConfigDict

from sapo_jax import presets
from sapo_jax.config import default_config_dict


def get_config(arg: str = "") -> ConfigDict:
    """Returns the configuration; `arg` is the variant."""
    config = default_config_dict()
    variant = presets.parse_variant(arg)
    presets.apply(config, variant.preset)
    config.rounds = 20
    config.model.source = "init:qwen2"
    config.model.compute_dtype = "float32"  # a tiny product says nothing about which type is faster
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
    presets.apply_sharing(config, variant)
    return config.lock()
