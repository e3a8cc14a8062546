"""What a transport is: how the device part is run on a device. One file each, registered by `@transport`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from edgekd.profile.device.runtimes import RUNTIMES
from edgekd.profile.targets import Target
from edgekd.registry import Registry


class Transport(Protocol):
    """Runs a measuring plan (see `device/measure.py`) on the device of a target."""

    def measure(
        self,
        target: Target,
        plan: dict[str, Any],
        folder: Path,
        tell: Callable[[dict[str, Any]], None],
    ) -> None:
        """Leave `result.json` and `samples.npz` in `folder`; `tell` gets every progress event.

        An event is what the device part says, or {"message": a line for the user}.

        Paths in `plan` are this machine's; `edgekd.profile.parcel.pack` makes them portable.
        Raises StageError with the device's own words.
        """


@runtime_checkable
class Describes(Protocol):
    """A transport that can also ask the device what it is: `edgekd targets check` and `probe`."""

    def describe(self, target: Target) -> dict[str, Any]:
        """What the device part's `describe` says (see `edgekd.profile.check.Description`).

        Raises StageError when the device cannot be reached or asked.
        """


def formats(name: str) -> dict[str, tuple[str, ...]]:
    """The runtimes that a transport can use, and the formats that each opens.

    Those of the device part, unless the transport has a `runtimes` mapping of its own.
    """
    own: dict[str, tuple[str, ...]] | None = getattr(TRANSPORTS.get(name), "runtimes", None)
    return own or {runtime.name: runtime.formats for runtime in RUNTIMES.values()}


def by_hand(target: Target) -> bool:
    """Whether somebody has to do something for every measurement: a gate does not repeat it then."""
    return getattr(TRANSPORTS.get(target.transport), "by_hand", False)


TRANSPORTS: Registry[type[Transport]] = Registry("transport", "edgekd.profile.transports")
transport = TRANSPORTS.register
