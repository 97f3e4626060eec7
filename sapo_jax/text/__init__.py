"""Prompts, completions and tokenizers: everything between a string and the ids the model sees."""

import os

# transformers would tell everybody that torch is missing; this package needs its tokenizers only.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
