"""How the CPUs of the targets multiply 8-bit integers, and what types that asks of a model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from edgekd.profile.device.environment import describe
from edgekd.results import Arithmetic

if TYPE_CHECKING:
    from edgekd.profile.targets import Target
    from edgekd.quantize.recipes import Recipe

# What sums products of bytes in 32 bits. Older x86 CPUs add pairs of them in 16 bits first
# (vpmaddubsw), which saturates: there weights get 7 bits, the reduced range.
_SUMS_IN_32_BITS = {"avx_vnni", "avx512_vnni", "amx_int8"}


def arithmetic(recipe: Recipe, targets: Iterable[Target] = ()) -> Arithmetic:
    """The types that suit every one of `targets`; without any, this machine."""
    cpus = [_cpu(target) for target in targets] or [_cpu(None)]
    reduced = any(
        architecture not in ("aarch64", "arm64") and not _SUMS_IN_32_BITS & isa
        for architecture, isa in cpus
    )
    if recipe.reduced_range != "auto":
        reduced = recipe.reduced_range == "on"
    return Arithmetic(
        reduced_range=reduced,
        # Arm's dot product (sdot) takes signed by signed, x86's (vpdpbusd) unsigned by signed.
        activations="int8" if all(a in ("aarch64", "arm64") for a, _ in cpus) else "uint8",
        cpus=tuple(
            " ".join([architecture or "unknown", *sorted(isa)]) for architecture, isa in cpus
        ),
    )


def _cpu(target: Target | None) -> tuple[str | None, set[str]]:
    """Architecture and ISA: as the descriptor says, else this machine's where the target is that."""
    if target is None or (target.transport == "local" and target.isa is None):
        machine = describe()
        return machine["architecture"], set(machine["isa"])
    return target.arch, set(target.isa or ())
