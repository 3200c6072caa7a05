"""Configs: frozen dataclasses whose fields declare their range, unit and meaning; checked before anything is allocated."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any, TypeVar

C = TypeVar("C")


class ConfigError(ValueError):
    """A field is outside what is allowed.  The command line turns it into exit status 2."""

    def __init__(self, field: str, value: Any, allowed: str):
        super().__init__(f"{field}={value!r}, allowed: {allowed}")
        self.field, self.value, self.allowed = field, value, allowed


def ranged(default: Any, lo: float | None, hi: float | None, help: str, unit: str = "") -> Any:
    """A number (or a tuple of numbers) within `[lo, hi]`; `None` leaves a side open, infinities are always refused."""
    return dataclasses.field(default=default, metadata={"lo": lo, "hi": hi, "help": help, "unit": unit})


def chosen(default: str, choices: tuple[str, ...], help: str, also: tuple[str, str] | None = None) -> Any:
    """One of a few words, or `also` any that a pattern matches: the pattern, and what to call such a word."""
    return dataclasses.field(default=default, metadata={"choices": choices, "also": also, "help": help})


def span(lo: float | None, hi: float | None, unit: str) -> str:
    """A range in words."""
    text = f"{'-inf' if lo is None else lo} .. {'inf' if hi is None else hi}"
    return f"{text} [{unit}]" if unit else text


def _check_number(name: str, value: Any, default: Any, meta: dict) -> None:
    allowed = span(meta["lo"], meta["hi"], meta["unit"])
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(name, value, f"a number, {allowed}")
    if not math.isfinite(value):
        raise ConfigError(name, value, f"finite, {allowed}")
    if isinstance(default, int) and not isinstance(value, int):
        raise ConfigError(name, value, f"an integer, {allowed}")
    if (meta["lo"] is not None and value < meta["lo"]) or (meta["hi"] is not None and value > meta["hi"]):
        raise ConfigError(name, value, allowed)


def validate(config: C, prefix: str = "") -> C:
    """Checks every field, nested dataclasses too; returns the config.  Raises `ConfigError` naming field, value and range."""
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        name, value, meta = prefix + field.name, getattr(config, field.name), field.metadata
        if dataclasses.is_dataclass(value):
            validate(value, name + ".")
        elif "choices" in meta and value not in meta["choices"]:
            pattern, form = meta.get("also") or (None, None)
            if pattern is None or not isinstance(value, str) or not re.fullmatch(pattern, value):
                raise ConfigError(name, value, " | ".join([*meta["choices"], *([form] if form else [])]))
        elif "lo" in meta:
            many = isinstance(field.default, tuple)
            if many and (not isinstance(value, (tuple, list)) or not value):
                raise ConfigError(name, value, "a non-empty list of numbers")
            default: Any = field.default
            default = default[0] if many else default
            for item in value if many else (value,):
                _check_number(name, item, default, dict(meta))
        elif isinstance(field.default, bool) and not isinstance(value, bool):
            raise ConfigError(name, value, "true | false")
        elif isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(name, value, "a finite number")
    check = getattr(config, "check", None)
    if check is not None:
        try:
            check()
        except ConfigError as error:  # names a field of its own
            raise ConfigError(prefix + error.field, error.value, error.allowed) from None
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """Plain JSON types: nested dictionaries, tuples as lists, paths as strings."""

    def plain(value):
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, dict):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, Path):
            return str(value)
        return [plain(v) for v in value] if isinstance(value, (tuple, list)) else value

    return plain(config)


def left_out(args: Any, name: str, unless: bool, why: str) -> None:
    """Raises `ConfigError` if a flag was given (has not its default) that would be ignored, `unless` it counts."""
    value = getattr(args, name)
    if not unless and value != type(args).__dataclass_fields__[name].default:
        raise ConfigError(name, value, f"left out ({why})")


def without_paths(config: C) -> C:
    """The same with nothing where it names a place: files may move, and weights that are passed on need not tell from where."""
    named = [f.name for f in dataclasses.fields(config) if isinstance(getattr(config, f.name), Path)]  # type: ignore[arg-type]
    return dataclasses.replace(config, **dict.fromkeys(named))  # type: ignore[type-var]


def from_dict(cls: type[C], values: dict[str, Any]) -> C:
    """Inverse of `to_dict`.  Raises `ConfigError` for a field that `cls` does not have, and for a value out of range."""
    fields: dict[str, Any] = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    kwargs = {}
    value: Any
    for name, value in values.items():
        if name not in fields:
            raise ConfigError(name, value, f"a field of {cls.__name__}: {', '.join(fields)}")
        default: Any = fields[name].default
        if default is dataclasses.MISSING and fields[name].default_factory is not dataclasses.MISSING:
            default = fields[name].default_factory()
        if dataclasses.is_dataclass(default) and isinstance(value, dict):
            value = from_dict(type(default), value)
        kwargs[name] = tuple(value) if isinstance(default, tuple) else value
    return validate(cls(**kwargs))


def difference(ours: Any, theirs: Any, prefix: str = "") -> tuple[str, Any, Any] | None:
    """First field in which two `to_dict` results differ, as `(name, ours, theirs)`; `None` if they agree."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in [*ours, *(n for n in theirs if n not in ours)]:
            found = difference(ours.get(name), theirs.get(name), f"{prefix}.{name}" if prefix else name)
            if found:
                return found
        return None
    return None if ours == theirs else (prefix, ours, theirs)
