"""Environments by name.  Nothing is imported until it is made, so that listing names costs nothing."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from envs.core import Env

Factory = Callable[..., Env]
_FACTORIES: dict[str, Factory] = {}


def register(name: str, factory: Factory | str, *, replace: bool = False) -> None:
    """Makes `factory` (a callable, or `"module:attribute"` imported at first use) known as `name`.

    Code outside this repository may call it too.  Raises `ValueError` if the name is taken and `replace` is false.
    """
    if name in _FACTORIES and not replace:
        raise ValueError(f"environment {name!r} is already registered; pass replace=True to override it")
    _FACTORIES[name] = _lazy(factory) if isinstance(factory, str) else factory


def names() -> list[str]:
    """Known names, sorted."""
    return sorted(_FACTORIES)


def make(name: str, **kwargs: Any) -> Env:
    """Builds the environment `name`.  Raises `KeyError` listing the known names."""
    if name not in _FACTORIES:
        raise KeyError(f"unknown environment {name!r}; known: {', '.join(names())}")
    return _FACTORIES[name](**kwargs)


def _lazy(target: str) -> Factory:
    module, _, attribute = target.partition(":")
    if not attribute:
        raise ValueError(f"{target!r} is not of the form 'module:attribute'")

    def factory(**kwargs: Any) -> Env:
        return getattr(importlib.import_module(module), attribute)(**kwargs)

    return factory


register("toy", "envs.toy:Toy")
for _name in ("hopper", "walker2d", "halfcheetah"):
    register(_name, f"envs.gym:{_name}")
