"""The decoder family, its weight sources and its export."""
