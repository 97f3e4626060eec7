"""Which peers the benchmark knows, what they need, and in what their work differs from that of the others."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

EXTRA = "pip install -e '.[baseline]' -c constraints.txt"


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """A library: what to import, what to install, and what a reader of its times must know."""

    module: str
    package: str
    install: str
    note: str


PEERS = {
    "trl": Peer(
        module="trl",
        package="trl",
        install=EXTRA,
        note="GRPOTrainer with generate of transformers (no vLLM), one group a micro-batch, activations kept; computes "
        "the entropy of every completion token as well; in bfloat16 autocast, in sampling too, on float32 weights.",
    ),
    "tunix": Peer(
        module="tunix",
        package="google-tunix",
        # Its bound safetensors<0.8 contradicts transformers, so no resolver installs both; it works with 0.8.
        install=f"{EXTRA} && pip install --no-deps google-tunix==0.1.7",
        note="GRPOLearner with its own sampler, one group a micro-batch, activations kept; logits of prompts as well, "
        "and the entropy of every completion token; dimensions of llama in its Qwen2 class, with biases that stay 0.",
    ),
}


def missing(contender: str) -> str:
    """Returns the line that says what `contender` lacks here, or "" if it lacks nothing or is no peer."""
    peer = PEERS.get(contender)
    if peer is None or find_spec(peer.module):
        return ""
    return f"--contenders: {contender} needs the package {peer.package}; {peer.install}"
