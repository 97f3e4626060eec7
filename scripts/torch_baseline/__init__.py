"""The round in plain torch and transformers, for comparison: as the paper's public code does it, and as torch can."""
