"""The platform's errors as messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct, field

import assets.errors
import orchestrator.errors
import serving.errors

_MODULES = (assets.errors, orchestrator.errors, serving.errors)
_CLASSES: Mapping[str, type[Exception]] = {
    name: value
    for module in _MODULES
    for name, value in vars(module).items()
    if isinstance(value, type)
    and issubclass(value, Exception)
    and value.__module__ == module.__name__
}


class Failure(Struct, frozen=True, tag_field="type", tag="failure"):
    """An error. ``kinds``: its class and base classes, nearest first, by name."""

    kinds: tuple[str, ...]
    text: str
    arguments: tuple[object, ...] = ()
    attributes: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def of(cls, error: Exception) -> Failure | None:
        """None if it is not one of the platform's."""
        kinds = tuple(c.__name__ for c in type(error).__mro__ if _CLASSES.get(c.__name__) is c)
        return Failure(kinds, str(error), error.args, vars(error)) if kinds else None

    def error(self) -> Exception:
        """The error; if a newer process raised it, its nearest base that is just a text."""
        if self.kinds and self.kinds[0] in _CLASSES:
            return _bare(_CLASSES[self.kinds[0]], _tuples(self.arguments), self.attributes)
        known = [_CLASSES[kind] for kind in self.kinds if kind in _CLASSES]
        plain = (kind for kind in known if kind.__str__ is Exception.__str__)
        return next(plain, serving.errors.GenerationFailed)(self.text)


def _bare(
    kind: type[Exception], arguments: tuple[object, ...], attributes: Mapping[str, object]
) -> Exception:
    """Made without ``__init__``, whose signature is not always ``args``."""
    error = kind.__new__(kind)
    error.args = arguments
    vars(error).update({name: _tuples(value) for name, value in attributes.items()})
    return error


def _tuples(value: Any) -> Any:
    """msgpack has no tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
