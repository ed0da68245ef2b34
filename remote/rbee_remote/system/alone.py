"""A module of a package without what the package's own `__init__` imports, where that is much and none of it is used.

llama_cpp's imports numpy, jinja2 and a database, gguf's numpy, requests and yaml: half a second, twice before a first
token. The keeper runs this file on a node too, where it looks whether a new runtime works.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any


def import_alone(name: str) -> ModuleType:
    """`package.module`. The package's `__init__` runs once something else of the package is asked for.

    Raises ImportError, and what the module raises.
    """
    package_name = name.rpartition(".")[0]
    if package_name not in sys.modules:
        spec = importlib.util.find_spec(package_name)
        if spec is None or spec.loader is None:
            raise ModuleNotFoundError(f"No module named {package_name!r}", name=package_name)
        package, loader = importlib.util.module_from_spec(spec), spec.loader

        def whole(attribute: str) -> Any:
            if attribute.startswith("__") or "__getattr__" not in vars(package):
                raise AttributeError(f"module {package_name!r} has no attribute {attribute!r}")
            vars(package).pop("__getattr__")
            loader.exec_module(package)
            return getattr(package, attribute)

        vars(package)["__getattr__"] = whole
        sys.modules[package_name] = package
    return importlib.import_module(name)
