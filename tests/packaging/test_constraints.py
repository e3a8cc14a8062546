"""constraints.txt pins everything that is installed, at the versions these tests run with."""

import importlib.metadata
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.packaging.recipe import ROOT

# PyPI's torch for CUDA pins these itself; the CPU build has none of them.
CUDA = ("nvidia-", "cuda-", "triton")


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    parsed = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(r.name): r.specifier for r in parsed}


def direct():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + project["optional-dependencies"]["test"]
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


def everything():
    """Names of the direct dependencies and all of theirs, as installed here."""
    names, todo = set(), list(direct().values())
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if name in names or name.startswith(CUDA):
            continue
        names.add(name)
        for line in importlib.metadata.requires(name) or []:
            inner = Requirement(line)
            extras = requirement.extras or {""}
            if any(inner.marker is None or inner.marker.evaluate({"extra": e}) for e in extras):
                todo.append(inner)
    return names


def test_every_pin_is_exact():
    for name, specifier in pins().items():
        assert [s.operator for s in specifier] == ["=="], name
        assert "*" not in str(specifier), name


@pytest.mark.parametrize("name", sorted(direct()))
def test_a_direct_dependency_is_pinned_within_its_bounds(name):
    (pin,) = pins()[name]
    assert direct()[name].specifier.contains(pin.version)


def test_all_that_is_installed_is_pinned_at_the_installed_version():
    pytest.importorskip("hatchling")  # the test extra is what is compared
    names = everything()
    assert len(names) > len(direct())
    assert names <= set(pins())
    for name in names:
        (pin,) = pins()[name]
        assert Version(importlib.metadata.version(name)).public == pin.version, name
