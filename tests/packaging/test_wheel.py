"""What ships: a wheel built from the files that the Dockerfile copies, opened and looked into."""

import configparser
import email
import subprocess
import sys
import zipfile

import pytest

import edgekd
from tests.packaging.recipe import ROOT, copy_context

CODE = (".py", ".pyc")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("hatchling")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    copy_context(source)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    result = subprocess.run([*command, "-w", str(out), str(source)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (path,) = out.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def content_of(wheel, suffix):
    (name,) = (name for name in wheel.namelist() if name.endswith(suffix))
    return wheel.read(name).decode()


def data_files(folder, prefix):
    found = (p for p in (ROOT / folder).rglob("*") if p.is_file() and p.suffix not in CODE)
    return {f"{prefix}/{p.relative_to(ROOT / folder)}" for p in found}


def test_every_target_and_calibration_recipe_ships_inside_the_package(wheel):
    targets = data_files("targets", "edgekd/targets")
    recipes = data_files("calibration", "edgekd/calibration")
    assert "edgekd/targets/local.yaml" in targets
    assert "edgekd/calibration/default.yaml" in recipes
    assert targets | recipes <= set(wheel.namelist())


def test_templates_examples_and_the_type_marker_ship(wheel):
    data = data_files("edgekd", "edgekd")
    assert {"edgekd/py.typed", "edgekd/examples/digits.yaml"} <= data
    assert data <= set(wheel.namelist())


def test_every_module_ships_and_nothing_else(wheel):
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "edgekd").rglob("*.py")}
    shipped = {n for n in wheel.namelist() if not n.startswith("edgekd-")}
    assert {n for n in shipped if n.endswith(".py")} == modules
    assert {n.split("/")[0] for n in shipped} == {"edgekd"}
    assert not any(n.split("/")[-1].startswith("test_") or n.endswith(".pyc") for n in shipped)


def test_the_command_the_version_and_the_licence_are_declared(wheel):
    scripts = configparser.ConfigParser()
    scripts.read_string(content_of(wheel, "entry_points.txt"))
    assert scripts["console_scripts"]["edgekd"] == "edgekd.cli:main"
    metadata = email.message_from_string(content_of(wheel, "METADATA"))
    assert metadata["Version"] == edgekd.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert "Version 2.0, January 2004" in content_of(wheel, "licenses/LICENSE")


def test_the_changelog_has_an_entry_for_this_version():
    assert f"\n## [{edgekd.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
