"""Names to implementations: one file each, registered by one decorator, imported when first asked for."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from edgekd.errors import UsageError

T = TypeVar("T")


class Registry(Generic[T]):
    """The implementations found in the modules of one package.

    `kind` is the word used in errors ("method"), `package` the dotted package whose modules register.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind, self.package = kind, package
        self._entries: dict[str, T] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: make the decorated object available as `name`."""

        def decorate(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return decorate

    def get(self, name: str) -> T:
        """The entry called `name`. Raises UsageError naming the known ones and the nearest."""
        self._load()
        if name not in self._entries:
            raise UsageError(f"unknown {self.kind} {name!r}{suggestion(name, self._entries)}")
        return self._entries[name]

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._load()
        return sorted(self._entries)

    def _load(self) -> None:
        if self._loaded:
            return
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        self._loaded = True


def nearest(name: str, known: Iterable[str]) -> str | None:
    """What was probably meant, if anything is near."""
    return next(iter(difflib.get_close_matches(name, sorted(known), n=1)), None)


def suggestion(name: str, known: Iterable[str]) -> str:
    """ " — did you mean 'x'?" or the list of what there is; for the end of an error message."""
    known = sorted(known)
    near = nearest(name, known)
    return f"; known: {', '.join(known)}" if near is None else f"; did you mean {near!r}?"
