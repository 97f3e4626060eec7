"""Generated Hugging Face model folders: random weights, a trained byte-level tokenizer, a chat template.

Made by transformers itself, so that what is imported is what its users have on disk.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

_CLASSES: dict[str, Any] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
QWEN_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Like Qwen2.5's: a system message of its own when none is given.
CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' %}"
    "{{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
CORPUS = (
    "What is the greatest common divisor of 12 and 18? The answer is 6.\n",
    "Solve the equation step by step, then give only the final answer between the tags.\n",
    "<answer>42</answer> It's 3.5 km; they've said: don't! (Well, maybe 1,000.)\n\n",
    "f <| g |> h <| x |> y <| z |>\n",  # a merge across the edge of a control token
    "Write the words in order: apple, banana, cherry.  Äpfel und Öl, naïve café, 数字。\n",
)


def write_hf_folder(
    folder: Path,
    family: str = "qwen2",
    *,
    tie: bool = True,
    seed: int = 0,
    max_shard_size: str = "100KB",
    dtype: torch.dtype = torch.float32,
    **dimensions: int | float,
) -> Any:
    """Writes a random, sharded model folder with tokenizer and returns the torch model (in eval mode).

    Biases, norm scales and weights are all random and of order one tenth to one, so that a forward
    pass that drops any of them gives other logits. The embedding is padded beyond the tokenizer, as
    Qwen2.5's is.

    Args:
        dimensions: override the config's, by transformers' names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = small_tokenizer()
    sizes: dict[str, Any] = {"vocab_size": len(tokenizer) + 13} | dimensions
    model = random_model(family, tie=tie, seed=seed, **sizes).to(dtype)
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    return model


def random_model(family: str, *, tie: bool, seed: int, **dimensions: int | float) -> Any:
    """Returns a small torch model whose every parameter is random."""
    config_class, model_class = _CLASSES[family]
    sizes: dict[str, Any] = {
        "vocab_size": 320,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 16 if family == "qwen3" else 8,  # Qwen3: heads * head_dim is not the width
        "max_position_embeddings": 512,
        "rope_theta": 5_000.0,
        "rms_norm_eps": 1e-5,
    }
    config = config_class(**(sizes | dimensions), tie_word_embeddings=tie)
    generator = torch.Generator().manual_seed(seed)
    model = model_class(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if "norm" in name else 0.15 * noise)
    return model


def small_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a Qwen-like byte-level BPE tokenizer trained on a few sentences (about 400 ids)."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    backend.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = CHAT_TEMPLATE
    return fast
