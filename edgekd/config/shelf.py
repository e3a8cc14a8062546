"""YAML files that users add their own to: one per entry, beside the configuration or shipped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from edgekd.config.load import Lines, read_yaml, validate_as
from edgekd.config.schema import Section
from edgekd.errors import UsageError
from edgekd.registry import nearest, suggestion

S = TypeVar("S", bound=Section)

# In a source tree beside the package; in an installed one inside it.
_SHIPPED = (Path(__file__).parents[2], Path(__file__).parents[1])


@dataclass(frozen=True)
class Shelf(Generic[S]):
    """The entries of one kind. A file's name is its entry's: `folder/NAME.yaml`.

    `kind` is the word in errors, `key` the configuration key that names an entry, `check` may
    raise UsageError for what the schema cannot tell (it gets file, entry and the lines of keys).
    """

    kind: str
    folder: str
    key: str
    schema: type[S]
    check: Callable[[Path, S, Lines], None] | None = None

    def find(self, name: str, base: Path, *, where: str | None = None) -> S:
        """The entry called `name`. Raises UsageError naming the known ones, or what is wrong in it."""
        for folder in self.folders(base):
            path = folder / f"{name}.yaml"
            if "/" not in name and path.is_file():
                return self.read(path)
        known = [path.stem for path in self.files(base)]
        # The suggestion lists them where none is near.
        listed = f"known: {', '.join(known)}; " if nearest(name, known) else ""
        raise UsageError(
            f"unknown {self.kind} {name!r}{suggestion(name, known)}",
            where=where or self.key,
            fix=f"{listed}add your own as {self.folder}/NAME.yaml",
        )

    def read(self, path: Path) -> S:
        """One entry. Raises UsageError with file, line and key for whatever is wrong in it."""
        value, lines = read_yaml(path)
        entry = validate_as(self.schema, value, where=str(path), lines=lines)
        name = getattr(entry, "name", path.stem)
        if name != path.stem:
            line = lines.get(("name",), 1)
            raise UsageError(
                f"name: is {name!r}, but the file is called {path.name}", where=f"{path}:{line}"
            )
        if self.check is not None:
            self.check(path, entry, lines)
        return entry

    def folders(self, base: Path) -> list[Path]:
        """Nearest first: beside the configuration, in the current folder, shipped with edgekd."""
        return [
            base / self.folder, Path(self.folder), *(root / self.folder for root in _SHIPPED)
        ]  # fmt: skip

    def files(self, base: Path) -> list[Path]:
        """The file of every entry, by name; a user's own hides a shipped one of the same name."""
        found: dict[str, Path] = {}
        for folder in self.folders(base):
            for path in sorted(folder.glob("*.yaml")):
                found.setdefault(path.stem, path)
        return [found[name] for name in sorted(found)]
