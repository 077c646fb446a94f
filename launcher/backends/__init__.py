"""Where ranks run. Each file in this folder registers its own backend; the folder is imported whole."""

import importlib
import pkgutil

from configs.plugins import load_plugins
from launcher.backends.base import BACKENDS, Backend

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

load_plugins("backends")

__all__ = ["BACKENDS", "Backend"]
