"""Prompts, completions and tokenizers: everything between a string and the ids the model sees."""
