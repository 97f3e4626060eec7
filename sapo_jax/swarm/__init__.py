"""What nodes exchange and how a node chooses from it; free of jax, so it runs where no accelerator is."""
