"""The families of encoders. Each file in this folder registers its own; the folder is imported whole."""

import importlib
import pkgutil

from configs.plugins import load_plugins
from distill_core.models.families.base import FAMILIES, Family

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

load_plugins("models")

__all__ = ["FAMILIES", "Family"]
