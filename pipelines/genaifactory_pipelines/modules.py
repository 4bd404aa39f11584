"""What the modules of a package make: evaluators, signals of drift. A new one is a new module, and nothing names it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import Any


def made(package: ModuleType) -> Iterator[Any]:
    """What the function `make` of each module in a package returns, in the order of the modules' names."""
    for module in pkgutil.iter_modules(package.__path__):
        yield importlib.import_module(f"{package.__name__}.{module.name}").make()
