"""The distillation step against published ones: python -m benchmarks.step (see __main__.py)."""
