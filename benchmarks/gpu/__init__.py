"""The distillation step on a GPU: ``python -m benchmarks.gpu``."""
