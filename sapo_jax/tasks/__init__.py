"""Problems with programs that check answers: drawn, rebuilt from references, scored; never jax."""

import warnings

# Python compiles the library's dependencies at their first import and then complains about their style.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", SyntaxWarning)
    import reasoning_gym  # noqa: F401
