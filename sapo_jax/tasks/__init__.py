"""Problems with programs that check answers: drawn, rebuilt from references, scored; never jax."""
