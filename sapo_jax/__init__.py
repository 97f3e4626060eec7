"""Swarm sAmpling Policy Optimization (arXiv 2509.08721) in JAX."""

__version__ = "0.1.0"
