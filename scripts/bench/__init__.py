"""The same work done by us and by others, timed side by side; `scripts/bench_round.py` is the command."""
