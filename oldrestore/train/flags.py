"""Flags of the command line: any field of a preset's settings can be given."""

import dataclasses
import inspect
import re
import typing
from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import Parameter

from oldrestore.train.config import LoopSettings
from oldrestore.train.presets import Settings, preset


def overrides_of(*settings: type[Any], skip: frozenset[str] = frozenset()) -> type[Any]:
    """A dataclass with the fields of all ``settings``, each optional: what a flag may change."""
    kinds: dict[str, list[Any]] = {}
    helps: dict[str, list[str]] = {}
    for one in settings:
        hints, described = typing.get_type_hints(one), _helps(one)
        for field in dataclasses.fields(one):
            if field.name not in skip and field.init:
                kinds.setdefault(field.name, []).append(hints[field.name])
                helps.setdefault(field.name, []).append(described.get(field.name, ""))
    fields: list[tuple[str, Any, Any]] = []
    for name, found in kinds.items():
        kind = _flag_kind(found)
        text = " / ".join(dict.fromkeys(filter(None, helps[name])))
        described_kind = Annotated[kind | None, Parameter(help=text or None)]  # type: ignore[valid-type]  # made at run time
        fields.append((name, described_kind, dataclasses.field(default=None)))
    title = "Or".join(one.__name__ for one in settings)
    made = dataclasses.make_dataclass(f"{title}Flags", fields, frozen=True, kw_only=True)
    made.__module__ = __name__  # make_dataclass says "types", which cyclopts takes for a builtin
    return made


def _flag_kind(kinds: Sequence[Any]) -> Any:
    """The type of a flag whose field is of these types in the members of a union of settings."""
    members = [member for kind in kinds for member in (typing.get_args(kind) or (kind,))]
    if all(map(dataclasses.is_dataclass, members)):
        return overrides_of(*members)
    # one number here, a list of them there: a flag that takes a list takes one number too
    return next((kind for kind in kinds if typing.get_origin(kind) is tuple), kinds[0])


def _helps(settings: type[Any]) -> dict[str, str]:
    """What the docstrings of a dataclass and its bases say of the fields: "name, name: text"."""
    entry = re.compile(r"^(\w+(?:, \w+)*): (.*(?:\n +.*)*)", flags=re.MULTILINE)
    found: dict[str, str] = {}
    for base in reversed(settings.__mro__[:-1]):
        for names, text in entry.findall(inspect.getdoc(base) or ""):
            found |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return found


def given(overrides: Any) -> dict[str, Any]:
    """What was given on the command line, by the name of its field."""
    fields = [] if overrides is None else dataclasses.fields(overrides)
    values = {field.name: getattr(overrides, field.name) for field in fields}
    return {name: value for name, value in values.items() if value is not None}


def _apply(settings: Any, overrides: Any, prefix: str = "") -> Any:
    """``settings`` with what was given on the command line, nested settings too.

    Raises:
        ValueError: the settings of this preset have no such field, or not that many values.
    """
    changes = {}
    for name, value in given(overrides).items():
        flag = f"{prefix}{name}"
        if not hasattr(settings, name):
            known = ", ".join(field.name for field in dataclasses.fields(settings))
            raise ValueError(
                f"{flag}: this preset has a {type(settings).__name__}, which knows {known}"
            )
        ours = getattr(settings, name)
        if dataclasses.is_dataclass(value):
            changes[name] = _apply(ours, value, f"{flag}.")
        elif isinstance(value, tuple) and not isinstance(ours, tuple):
            if len(value) != 1:
                raise ValueError(f"{flag}: this preset takes one number, got {value}")
            changes[name] = value[0]
        else:
            changes[name] = value
    return dataclasses.replace(settings, **changes)


def flags_of(stage: type[LoopSettings], skip: frozenset[str] = frozenset()) -> Any:
    return Annotated[overrides_of(stage, skip=skip) | None, Parameter(name="*")]


def settings_of(
    stage: type[Settings], name: str, overrides: Any, kind: str | None = None
) -> Settings:
    changed = _apply(preset(stage, name, kind), overrides)
    assert isinstance(changed, stage)
    return changed
