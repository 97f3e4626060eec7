"""The maths of the update as pure functions on arrays: advantages, log-probs, losses."""
