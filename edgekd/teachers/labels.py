"""The teacher's order of the classes and the data's: told from each other by names, where there are any."""

from __future__ import annotations

from collections.abc import Sequence

from edgekd.errors import UsageError


def reordering(
    teacher: Sequence[str] | None, data: Sequence[str], *, where: str
) -> list[int] | None:
    """The teacher's column for every class of the data; None where the order is the same.

    Without the teacher's names its order is taken to be the data's. Raises UsageError when the names
    are not the same ones.
    """
    if teacher is None or list(teacher) == list(data):
        return None
    missing = [name for name in data if name not in teacher]
    others = [name for name in teacher if name not in data]
    if missing or others or len(teacher) != len(data):
        known = f"the teacher knows {_some(others)}" if others else "the teacher does not know it"
        raise UsageError(
            f"the data's classes are {_some(missing or data)}; {known}"
            if missing or others
            else f"the teacher has {len(teacher)} classes by name, the data {len(data)}",
            where=where,
            fix="give the teacher's names in its order, in the data's words: teacher.args: "
            "{classes: […]}"
            if missing or not others
            else "the data has no sample of it: add some, or take a teacher of these classes only",
        )
    return [list(teacher).index(name) for name in data]


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return f"{shown}, … ({len(names)} in all)" if len(names) > 5 else shown
