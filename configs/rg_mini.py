r"""A cheap testbed: eight nodes of a 0.9M-parameter model from random weights on real ReasoningGym text.

    python -m sapo_jax.main --config=configs/rg_mini.py:4_4 --workdir=runs/rg_mini_4_4

Variants: :8_0 (no sharing), :6_2, :4_4 (also without a variant), :2_6; with `genrl_` in front the
rules of the paper's public code. No download.

A supervised cold start teaches every node the answer format and a little knowledge, then 400 rounds
follow. A fifth of its targets are right and the others are answers of other questions, so what a
node samples is right on purpose in at most about a fifth of all cases: enough for groups whose
scores differ, with room to learn. Compare variants over several `--config.seed`, never by one run.

Hardware: made for one GPU or TPU of any size; eight nodes with Adam need less than 0.2 GB and are
computed together. Two CPU cores are enough to try it out:

    python -m sapo_jax.main --config=configs/rg_mini.py:4_4 --workdir=runs/rg_mini_try \
        --config.nodes=2 --config.cold_start.steps=50 --config.cold_start.batch_rows=16 \
        --config.rounds=10 --config.eval.questions=4

Duration: an estimate from arithmetic: 3 TFLOP a round, so well below a second a round on a GPU and
minutes for the whole run. What to expect: `eval/format_rate` near one after the cold start, and
`eval/core6_strict_pass_at_1` between 0.05 and 0.25, from where it can rise. Learning rate and cold
start have not been tuned. Three specialties blur the mean over nine: propositional_logic pays for
copying a premise, bf is out of reach, arc_1d has long prompts; core-6 leaves them out.

The tokenizer is bytes, not a learned vocabulary, and that changes three things. Prompts are about
four times as long: 36 to 528 tokens (propositional_logic; arc_1d 475, binary_matrix 355, the others
at most 239), where a thousand learned entries would need at most about 124. Without
propositional_logic and arc_1d everything fits the first bucket. The model spends capacity on
spelling; numbers however are read digit by digit, and nothing is ever out of vocabulary. Answers
stay short: 34 tokens with tags and end token at most.
"""

from ml_collections import ConfigDict

from sapo_jax import presets
from sapo_jax.config import default_config_dict


def get_config(arg: str = "") -> ConfigDict:
    """Returns the configuration; `arg` is the variant."""
    config = default_config_dict()
    variant = presets.parse_variant(arg)
    presets.apply(config, variant.preset)
    config.rounds = 400
    config.nodes = 8
    config.model.source = "init:llama"
    config.model.init.width = 128
    config.model.init.mlp_width = 384
    config.model.init.layers = 4
    config.model.init.heads = 4
    config.model.init.kv_heads = 4
    config.model.init.head_size = 32
    config.text.system_prompt = ""
    config.tasks.catalog = "rg_mini_l1"
    config.tasks.shots = 0
    config.sampling.prompt_buckets = (384, 544)
    config.sampling.max_new_tokens = 40
    config.sharing.local = 4
    config.sharing.external = 4
    config.learner.learning_rate = 1e-4
    config.learner.remat = False
    config.cold_start.steps = 1000
    config.cold_start.batch_rows = 64
    config.cold_start.learning_rate = 1e-3
    config.cold_start.true_frac = 0.2
    config.eval.every_rounds = 50
    config.eval.questions = 60
    config.eval.samples = 8
    config.eval.questions_per_call = 20  # the same for all variants, so that they draw the same random numbers
    config.checkpoint.every_rounds = 100
    presets.apply_sharing(config, variant)
    return config.lock()
