"""Measurements of preparation: a file for each part, with ``run(texts) -> [(bar, value, unit), ...]``."""
