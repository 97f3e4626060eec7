"""Drawing completions from a policy: prefill, decode loop, token draw."""
