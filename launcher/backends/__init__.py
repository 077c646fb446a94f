"""Where ranks run. Each file in this folder registers its own backend; the folder is imported whole."""

import importlib
import pkgutil

from launcher.backends.base import BACKENDS, Backend

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["BACKENDS", "Backend"]
