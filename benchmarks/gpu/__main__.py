"""Says what a stock torch image lacks before anything of ours is imported; then the table."""

from __future__ import annotations

import importlib.util
import os
import sys

NEEDED = {
    "jinja2": "jinja2",
    "numba": "numba",
    "numpy": "numpy",
    "orjson": "orjson",
    "psutil": "psutil",
    "pydantic": "pydantic",
    "rich": "rich",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "tensorboard": "tensorboard",
    "tokenizers": "tokenizers",
    "torch": "torch",
    "transformers": "transformers",
    "xxhash": "xxhash",
    "yaml": "PyYAML",
    "zstandard": "zstandard",
}
"""By module, the package: what is imported whatever is measured. Without DeepSpeed and TextBrewer rows are missing."""


def lacking() -> list[str]:
    """Packages that are needed and not installed."""
    return [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]


def main() -> int:
    missing = lacking()
    if missing:
        print(f"Not installed: {', '.join(missing)}. Install with: {sys.executable} -m pip install {' '.join(missing)}")
        return 2
    try:
        from benchmarks.gpu import table
    except ModuleNotFoundError as error:
        print(f"{error.name} is not installed. `pip install -e .` in the checkout installs all that is needed.")
        return 2
    return table.main()


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # as distill_core.run does
