"""Bundles and their results: the whole way as a user goes it, and what strangers may have written."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml

from edgekd.artifacts import sha256_file, sha256_json
from edgekd.cli import main
from edgekd.pipeline.run import Run
from edgekd.profile import device, imported
from edgekd.profile.device import environment
from edgekd.profile.targets import Target
from edgekd.profile.transport import by_hand
from tests.pipeline.test_line import TINY, merged

FIELD = "name: field\nclass: edge\ntransport: bundle\nruntimes: [onnxruntime, openvino]\n"


def edgekd(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "edgekd", *map(str, arguments)],
        capture_output=True, text=True, cwd=cwd,
    )  # fmt: skip


def bench(folder, *arguments, **variables):
    """Run bench.pyz as on a device: away from edgekd and from this folder."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("COV", "PYTHON"))}
    return subprocess.run(
        [sys.executable, str(folder / "bench.pyz"), *map(str, arguments)],
        capture_output=True, text=True, cwd="/", env={**clean, **variables},
    )  # fmt: skip


def unpack(archive, folder):
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A user's folder: a configuration, a target behind a bundle, a run that waits, and the bundle."""
    root = tmp_path_factory.mktemp("project")
    (root / "targets").mkdir()
    (root / "targets" / "field.yaml").write_text(FIELD)
    config = merged(TINY, {"profile": {"targets": ["field"]}})
    (root / "compress.yaml").write_text(yaml.safe_dump(config))
    waiting = edgekd("compress", "compress.yaml", "-q", cwd=root)
    assert waiting.returncode == 3, waiting.stderr
    (root / "waiting.txt").write_text(waiting.stderr)
    made = edgekd("bundle", "runs/tiny", "-o", "bench.zip", "--samples", "50", cwd=root)
    assert made.returncode == 0, made.stderr
    unpacked = unpack(root / "bench.zip", root / "bench")
    measured = bench(unpacked)
    assert measured.returncode == 0, measured.stderr
    (root / "measured.txt").write_text(measured.stderr)
    return root


@pytest.fixture
def folder(project, tmp_path):
    """A copy of the unpacked bundle that nobody has run."""
    return unpack(project / "bench.zip", tmp_path / "bench")


@pytest.fixture
def mine(project, tmp_path, monkeypatch):
    """A copy of the project whose run nothing was imported into; the current folder."""
    root = tmp_path / "mine"
    shutil.copytree(project, root)
    shutil.rmtree(root / "bench")
    shutil.copy(project / "bench" / "result.json", root / "result.json")
    for path in (root / "runs/tiny/bundles").glob("*.result.json"):
        path.unlink()
    monkeypatch.chdir(root)
    return root


def run_command(*arguments):
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    return caught.value.code or 0


@pytest.mark.slow
class TestTheWholeWay:
    def test_a_run_that_waits_says_with_which_commands_it_goes_on(self, project):
        text = (project / "waiting.txt").read_text()
        assert "target field: waiting for a result: no result was imported yet" in text
        for command in ("edgekd bundle", "--target field -o bench.zip", "python3 bench.pyz",
                        "edgekd import result.json --run"):  # fmt: skip
            assert command in text
        assert "Traceback" not in text

    def test_after_the_import_it_goes_on_and_nothing_is_done_twice(self, mine, capsys):
        assert run_command("import", "result.json") == 0
        told = capsys.readouterr().out
        assert told.count("the same outputs") == 4
        assert "next: edgekd compress runs/tiny\n" in told
        assert run_command("compress", "compress.yaml", "--quiet") == 0
        run = Run(mine / "runs/tiny")
        measured = {(m.role, m.runtime): m for m in run.profile.measurements}
        assert len(measured) == 4
        here = {(p.role, p.runtime): p for p in run.verify.files}
        for key, m in measured.items():
            assert (m.target, m.provenance) == ("field", "measured")
            assert m.latency.count > 10
            assert m.device_parity.samples == 50
            assert m.device_parity.passed
            assert m.device_parity.agreement == 1
            assert m.device_parity.accuracy == m.device_parity.accuracy_here
            # The first 50 of the test samples.
            assert abs(m.device_parity.accuracy - here[key].accuracy.value) < 0.2
        assert {c.runtime for c in run.profile.comparisons} == {"onnxruntime", "openvino"}
        assert "accuracy there, 50 samples" in (mine / "runs/tiny/report.html").read_text()
        before = run.manifest.stages["profile"]
        assert run_command("compress", "compress.yaml", "-q") == 0
        assert run.manifest.stages["profile"] == before

    def test_the_samples_arrive_as_they_were_measured(self, mine):
        result = json.loads((mine / "result.json").read_text())
        assert run_command("import", "result.json") == 0
        assert run_command("profile", "runs/tiny", "-q") == 0
        key = "field/openvino/student/latency"
        with np.load(mine / "runs/tiny/profile/samples.npz") as samples:
            rounds = result["samples"][key]["rounds"]
            assert np.bincount(samples[f"{key}/rounds"]).tolist() == rounds
            assert len(samples[key]) == sum(rounds)
        m = next(m for m in Run(mine / "runs/tiny").profile.measurements
                 if (m.role, m.runtime) == ("student", "openvino"))  # fmt: skip
        assert m.load == result["models"]["field/openvino/student"]["load"]

    def test_another_result_is_profiled_again(self, mine):
        for name, factor in (("once", 1), ("slower", 2)):
            result = json.loads((mine / "result.json").read_text())
            for figures in result["models"].values():
                figures["load"] *= factor
            (mine / f"{name}.json").write_text(json.dumps(result))
        found = []
        for name in ("once", "slower"):
            assert run_command("import", f"{name}.json") == 0
            assert run_command("profile", "runs/tiny", "-q") == 0
            found.append(Run(mine / "runs/tiny").profile.measurements[0].load)
        assert found[1] == 2 * found[0]

    def test_equal_content_gives_equal_bytes(self, mine):
        assert run_command("bundle", "runs/tiny", "-o", "again.zip", "--samples", "50") == 0
        assert sha256_file(mine / "again.zip") == sha256_file(mine / "bench.zip")

    def test_the_manifest_says_what_is_in_the_zip(self, project):
        manifest = json.loads((project / "bench/MANIFEST.json").read_text())
        names = set(zipfile.ZipFile(project / "bench.zip").namelist())
        assert names == {"MANIFEST.json", *manifest["files"]}
        for name, digest in manifest["files"].items():
            assert sha256_file(project / "bench" / name) == digest
        readme = (project / "bench/README.txt").read_text()
        assert "python3 -m pip install numpy onnxruntime openvino" in readme

    def test_a_changed_student_is_named_and_the_old_result_is_not_used(self, mine, capsys):
        assert run_command("import", "result.json") == 0
        longer = ("--set", "distill.epochs=5")
        assert run_command("compress", "compress.yaml", "-q", *longer) == 3
        error = capsys.readouterr().err
        assert "field/onnxruntime/student.path: student.onnx is another file" in error
        assert "teacher" not in error
        # Bundles are then made of what it waits for.
        assert run_command("import", "result.json") == 2
        error = capsys.readouterr().err
        assert "no longer has the files that were measured: " in error
        assert "student.onnx" in error

    def test_changed_settings_are_named(self, mine, capsys):
        assert run_command("import", "result.json") == 0
        assert run_command("profile", "runs/tiny", "-q", "--set", "profile.max_seconds=3") == 3
        assert "max_seconds is 0.5, here 3.0" in capsys.readouterr().err
        assert run_command("bundle", "runs/tiny", "-o", "new.zip") == 0
        with zipfile.ZipFile("new.zip") as packed:
            plan = json.loads(packed.read("MANIFEST.json"))["plan"]
        assert plan["max_seconds"] == 3

    def test_a_result_is_there_before_anything_else_is_measured(self, mine, monkeypatch):
        """Minutes on an attached device are not thrown away for a result that is missing."""
        from edgekd.profile.transports.local import Local

        monkeypatch.setattr(Local, "measure", lambda *_: pytest.fail("measured in vain"))
        targets = "profile.targets=[local, field]"
        assert run_command("profile", "runs/tiny", "-q", "--set", targets) == 3

    def test_figures_of_what_the_descriptor_calls_emulated_are_labelled(self, mine):
        assert run_command("import", "result.json") == 0
        (mine / "targets" / "field.yaml").write_text(FIELD + "emulated: true\n")
        assert run_command("profile", "compress.yaml", "-q") == 0
        profile = Run(mine / "runs/tiny").profile
        assert {m.provenance for m in profile.measurements} == {"emulated"}
        assert profile.environment["field"]["emulated"]

    def test_it_takes_somebodys_hands_so_that_no_gate_measures_again_there(self):
        assert by_hand(Target.model_validate(yaml.safe_load(FIELD)))


class TestMakingABundle:
    def test_of_a_run_that_is_not_verified_it_is_refused(self, mine, capsys):
        (mine / "runs/tiny/export/student.onnx").write_bytes(b"edited")
        assert run_command("bundle", "runs/tiny", "-o", "b.zip") == 2
        assert "edgekd verify runs/tiny" in capsys.readouterr().err
        assert not Path("b.zip").exists()

    def test_for_a_target_that_is_attached_it_is_refused(self, mine, capsys):
        assert run_command("bundle", "runs/tiny", "--target", "local") == 2
        assert "transport: bundle" in capsys.readouterr().err

    def test_a_run_from_elsewhere_cannot_make_us_pack_our_own_files(self, mine, capsys):
        path, manifest = mine / "runs/tiny/export/export.json", mine / "runs/tiny/run.json"
        honest, size = sha256_file(path), path.stat().st_size
        export = json.loads(path.read_text())
        export["files"][0]["files"].append("../../../etc/passwd")
        path.write_text(json.dumps(export))
        text = manifest.read_text().replace(honest, sha256_file(path))
        manifest.write_text(text.replace(f'"size": {size}', f'"size": {path.stat().st_size}'))
        assert run_command("bundle", "runs/tiny", "-o", "b.zip") == 2
        assert "outside the run folder" in capsys.readouterr().err
        assert not Path("b.zip").exists()

    @pytest.mark.parametrize("out", ["compress.yaml/b.zip", "targets", "/proc/x/b.zip"])
    def test_an_unwritable_place_is_one_clear_error(self, mine, capsys, out):
        assert run_command("bundle", "runs/tiny", "-o", out) == 2
        assert "cannot be written" in capsys.readouterr().err
        assert not list(mine.glob("**/*.tmp"))


def edit_manifest(folder, change, *, renew_id=True):
    path = folder / "MANIFEST.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    if renew_id:
        manifest["id"] = sha256_json({k: v for k, v in manifest.items() if k != "id"})
    path.write_text(json.dumps(manifest))


def student(folder):
    return next(folder.glob("files/*/student.onnx"))


def put(manifest, keys, value):
    *inner, last = keys.split("/")
    for key in inner:
        manifest = manifest[key]
    manifest[last] = value


def linked(path):
    real = path.with_name("elsewhere")
    path.rename(real)
    path.symlink_to(real)


HOSTILE_BUNDLES = {
    "an edited model": (lambda f: student(f).write_bytes(b"x"), "student.onnx' is not the file"),
    "a missing file": (lambda f: student(f).unlink(), "student.onnx' is missing"),
    "a linked file": (lambda f: linked(student(f)), "student.onnx' is a link"),
    "a linked folder": (lambda f: linked(f / "check"), "is a link"),
    "a folder for a file": (
        lambda f: (student(f).unlink(), student_folder(f)), "student.onnx' is missing",
    ),
    "an edited plan": (
        lambda f: edit_manifest(f, lambda m: put(m, "plan/max_seconds", 1e9), renew_id=False),
        "MANIFEST.json was edited",
    ),
    "a path upwards": (
        lambda f: edit_manifest(f, lambda m: m["files"].update({"../../etc/passwd": "0" * 64})),
        "'../../etc/passwd' is not a path inside",
    ),
    "a path that no system has": (
        lambda f: edit_manifest(f, lambda m: m["files"].update({"a\0b": "0" * 64})),
        "'a\\x00b' is missing",
    ),
    "a path that is empty": (
        lambda f: edit_manifest(f, lambda m: m["files"].update({"check//x": "0" * 64})),
        "'check//x' is not a path inside",
    ),
    "an absolute path": (
        lambda f: edit_manifest(f, lambda m: m["files"].update({"/etc/passwd": "0" * 64})),
        "'/etc/passwd' is not a path inside",
    ),
    "a model from outside": (
        lambda f: edit_manifest(f, lambda m: put(m["plan"]["models"][0], "path", "/etc/passwd")),
        "uses '/etc/passwd', which is not among its files",
    ),
    "inputs from outside": (
        lambda f: edit_manifest(f, lambda m: put(m, "plan/inputs", "../x.npy")), "not among",
    ),
    "expected outputs from outside": (
        lambda f: edit_manifest(f, lambda m: put(m, "check/labels", "../x.npy")), "not among",
    ),
    "no plan": (lambda f: edit_manifest(f, lambda m: m.pop("plan")), "not one that edgekd wrote"),
    "files as a list": (
        lambda f: edit_manifest(f, lambda m: put(m, "files", ["a"])), "not one that edgekd wrote",
    ),
    "a plan of text": (
        lambda f: edit_manifest(f, lambda m: put(m, "plan/batch_size", "many")), "cannot be run",
    ),
    "no JSON": (lambda f: (f / "MANIFEST.json").write_text("{"), "not one that edgekd wrote"),
    "a list": (lambda f: (f / "MANIFEST.json").write_text("[]"), "not one that edgekd wrote"),
    "deep JSON": (
        lambda f: (f / "MANIFEST.json").write_text("[" * 200_000), "not one that edgekd wrote",
    ),
    "a huge manifest": (
        lambda f: (f / "MANIFEST.json").write_text(" " * (17 << 20)), "not one that edgekd wrote",
    ),
    "a linked manifest": (lambda f: linked(f / "MANIFEST.json"), "unpack the whole zip"),
    "no manifest": (lambda f: (f / "MANIFEST.json").unlink(), "unpack the whole zip"),
}  # fmt: skip


def student_folder(folder):
    (
        folder / json.loads((folder / "MANIFEST.json").read_text())["plan"]["models"][1]["path"]
    ).mkdir()


class TestOnTheDevice:
    @pytest.mark.parametrize("name", HOSTILE_BUNDLES)
    def test_a_bundle_that_is_not_what_it_says_is_refused(self, folder, name):
        spoil, message = HOSTILE_BUNDLES[name]
        spoil(folder)
        result = bench(folder)
        assert result.returncode == 2, result.stderr
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: ")
        assert message in line
        assert not [path for path in folder.iterdir() if "result" in path.name]

    def test_a_runtime_that_is_missing_does_not_lose_the_other_models(self, mine, folder, tmp_path):
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "openvino.py").write_text("raise ImportError('not\\non this device')")
        result = bench(folder, PYTHONPATH=str(tmp_path / "site"))
        assert result.returncode == 0, result.stderr
        assert "field/openvino/teacher does not run here" in result.stderr
        assert run_command("import", folder / "result.json") == 0
        assert run_command("compress", "runs/tiny", "-q") == 0
        profile = Run(mine / "runs/tiny").profile
        assert {m.runtime for m in profile.measurements} == {"onnxruntime"}
        reasons = [text for text in profile.warnings if "does not run there" in text]
        assert len(reasons) == 2
        assert "ImportError: not on this device" in reasons[0]

    def test_where_nothing_runs_there_is_no_result_but_the_command_to_install_it(
        self, folder, tmp_path
    ):
        (tmp_path / "site").mkdir()
        for name in ("openvino", "onnxruntime"):
            (tmp_path / "site" / f"{name}.py").write_text("raise ImportError('missing')")
        result = bench(folder, PYTHONPATH=str(tmp_path / "site"))
        assert result.returncode == 3
        assert "python3 -m pip install onnxruntime openvino" in result.stderr
        assert not (folder / "result.json").exists()

    def test_without_numpy_it_says_so(self, folder):
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("COV", "PYTHON"))}
        # -S: no site-packages.
        result = subprocess.run(
            [sys.executable, "-S", "-E", str(folder / "bench.pyz")],
            capture_output=True, text=True, env=clean,
        )  # fmt: skip
        assert result.returncode == 2
        assert result.stderr == "error: needs numpy: python3 -m pip install numpy\n"

    def test_a_folder_that_cannot_be_written_is_said_before_measuring(self, folder, tmp_path):
        result = bench(folder, folder, "--out", tmp_path / "nowhere" / "result.json")
        assert result.returncode == 2
        assert "name another file with --out" in result.stderr

    def test_outputs_that_differ_are_told_and_warned_of(self, mine, folder, capsys):
        """Expected outputs of another function, in a bundle that is consistent in itself."""
        name = "check/onnxruntime-student.npy"
        expected = np.load(folder / name)
        np.save(folder / name, expected + 1)
        edit_manifest(folder, lambda m: m["files"].update({name: sha256_file(folder / name)}))
        result = bench(folder)
        assert result.returncode == 0
        assert "field/onnxruntime/student: outputs DIFFERENT" in result.stderr
        figures = json.loads((folder / "result.json").read_text())["models"]
        error = figures["field/onnxruntime/student"]["device_parity"]["max_error"]
        assert error == pytest.approx(1 / np.abs(expected + 1).max(), rel=1e-5)
        # It is not the bundle that this run has made.
        assert run_command("import", folder / "result.json", "--run", "runs/tiny") == 2
        assert f"{name} is another file" in capsys.readouterr().err

    def test_the_device_part_is_python_39(self):
        for path in Path(device.__file__).parent.rglob("*.py"):
            tree = ast.parse(path.read_text(), feature_version=(3, 9))
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "zip":
                    assert not node.keywords, f"{path}:{node.lineno}: zip(strict=) is Python 3.10"

    def test_this_machine_is_no_emulator(self):
        assert environment.emulated() is None

    def test_a_program_for_another_machine_is_emulated(self, tmp_path, monkeypatch):
        header = bytearray(Path(sys.executable).read_bytes()[:64])
        header[18:20] = (243).to_bytes(2, "little")  # RISC-V
        (tmp_path / "python3").write_bytes(header)
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python3"))
        assert "executes this" in environment.emulated()


def spoilt(result, **changes):
    """`result` with values put at paths such as `models/*/load` (* is the first key)."""
    for path, value in changes.items():
        *keys, last = path.split("/")
        place = result
        for key in keys:
            place = place[next(iter(place))] if key == "*" else place[key]
        place[last] = value
    return result


ONE_CALL = {"samples/*/rounds": [1], "samples/*/launches": [1]}
HOSTILE_RESULTS = {
    "an empty file": ("", "Invalid JSON"),
    "no JSON": ("result", "Invalid JSON"),
    "a list": ("[]", "should be an object"),
    "deep JSON": ('{"environment": ' + "[" * 100_000, "recursion limit"),
    "deep JSON in a plan": ({"manifest/plan": "DEEP"}, "recursion limit"),
    "not a number": ({"models/*/load": "NaN!"}, "finite"),
    "infinite": ({"models/*/load": "Infinity!"}, "finite"),
    "beyond floats": ({"models/*/load": "1e999!"}, "finite|less than"),
    "negative": ({"models/*/first": -1.0}, "greater than 0"),
    "negative memory": ({"models/*/peak_rss": -5}, "greater than 0"),
    "text for a number": ({"models/*/load": "1.0"}, "valid number"),
    "a flag for a number": ({"models/*/load": True}, "valid number"),
    "more than certain": ({"models/*/device_parity": {
        "samples": 50, "max_error": 0.0, "agreement": 1.5, "accuracy": 1.0, "accuracy_here": 1.0,
        "tolerance": 1.0}}, "less than or equal to 1"),
    "an unknown key": ({"command": "rm"}, "command: Extra inputs"),
    "an unknown key inside": ({"models/*/command": "rm"}, "command: Extra inputs"),
    "another format": ({"schema": 2}, "schema: "),
    "a target upwards": ({"manifest/target": "../../x"}, "manifest.target"),
    "a model upwards": ({"samples": {"../../x": {"nanoseconds": "", "rounds": [1], "launches": [1]}}},
                        "should match pattern"),
    "an id upwards": ({"manifest/id": "../../../x"}, "manifest.id"),
    "samples that are no base64": ({"samples/*/nanoseconds": "é"}, "base64"),
    "samples that are no integers": ({"samples/*/nanoseconds": "AAAA"}, "base64 of int64"),
    "no samples": ({"samples/*/nanoseconds": ""}, "0 samples in rounds of"),
    "zero seconds": ({"samples/*/nanoseconds": "AAAAAAAAAAA=", **ONE_CALL},
                     "should be positive"),
    "negative seconds": ({"samples/*/nanoseconds": "//////////8=", **ONE_CALL},
                         "should be positive"),
    "empty rounds": ({"samples/*/rounds": [0]}, "greater than or equal to 1"),
    "rounds of nobody else": ({"samples/*/nanoseconds": "AQAAAAAAAAA=", **ONE_CALL},
                              "not as many rounds"),
    "launches of nobody else": ({"samples/*/launches": [10**6]}, "rounds in launches of"),
    "a phase without samples": ({"samples": {}}, "samples should be there"),
    "no models": ({"models": {}}, "at least 1"),
    "another precision": ({"models/*/precision": "f16"}, "precision and batch sizes"),
    "another batch": ({"models/*/latency": {
        "batch_size": 2, "warmup": 1, "conclusive": True, "steady": True}}, "precision and batch"),
    "a tolerance of its own": ({"models/*/device_parity/tolerance": 9.0}, "not the bundle's"),
    "an edited plan": ({"manifest/plan/max_seconds": 1.0},
                       "another bundle.*plan.max_seconds is 1.0, here 0.5"),
    "an edited model": ({"manifest/files/bench.pyz": "0" * 64}, "bench.pyz is another file"),
    "another run's": ({"manifest/id": "0" * 64, "manifest/run": "other"}, "run is other, here tiny"),
    "another target's": ({"manifest/target": "local"}, "no bundle for target 'local'"),
    "a model more": ({"failed": {"field/x/y": "why"}}, "not those of the bundle"),
}  # fmt: skip


class TestImporting:
    @pytest.mark.parametrize("name", HOSTILE_RESULTS)
    def test_what_a_stranger_wrote_is_refused_and_nothing_is_written(self, mine, capsys, name):
        change, message = HOSTILE_RESULTS[name]
        if isinstance(change, dict):
            value = spoilt(json.loads((mine / "result.json").read_text()), **change)
            text = json.dumps(value).replace('"DEEP"', "[" * 5000 + "]" * 5000)
            for number in ("NaN", "Infinity", "1e999"):
                text = text.replace(f'"{number}!"', number)
            change = text
        (mine / "bad.json").write_text(change)
        before = sorted((mine / "runs/tiny/bundles").iterdir())
        assert run_command("import", "bad.json", "--run", "runs/tiny") == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert "Traceback" not in error
        assert re.search(message, error), error
        assert sorted((mine / "runs/tiny/bundles").iterdir()) == before

    def test_a_file_that_is_too_large_is_not_read(self, mine, capsys, monkeypatch):
        monkeypatch.setattr(imported, "MAX_BYTES", 1 << 20)
        with (mine / "large.json").open("wb") as file:
            file.truncate(2 << 20)
        assert run_command("import", "large.json") == 2
        assert "larger than 1 MiB" in capsys.readouterr().err

    def test_what_is_no_file_is_refused(self, mine, capsys):
        os.mkfifo(mine / "fifo.json")
        for name in ("fifo.json", "runs", "missing.json"):
            assert run_command("import", name) == 2
            assert "no such file" in capsys.readouterr().err

    def test_a_result_of_no_run_here_says_how_to_name_it(self, mine, capsys, monkeypatch):
        monkeypatch.chdir(mine / "targets")
        assert run_command("import", mine / "result.json") == 2
        assert "--run" in capsys.readouterr().err
        assert run_command("import", mine / "result.json", "--run", mine / "runs/tiny") == 0

    def test_two_copies_of_a_run_are_not_guessed_between(self, mine, capsys):
        shutil.copytree("runs/tiny", "runs/copy")
        assert run_command("import", "result.json") == 2
        error = capsys.readouterr().err
        assert "runs/copy" in error
        assert "runs/tiny" in error

    def test_a_devices_words_cannot_command_the_terminal_or_the_report(self, mine, capsys):
        result = json.loads((mine / "result.json").read_text())
        result["environment"]["cpu_model"] = (
            "\x1b]0;owned\x07<script>alert(1)</script>" + "x" * 5000
        )
        result["warnings"] = ["\x1b[2J<img src=x onerror=alert(1)>"]
        (mine / "bad.json").write_text(json.dumps(result))
        assert run_command("import", "bad.json") == 0
        assert run_command("compress", "runs/tiny") == 0
        shown = capsys.readouterr()
        assert "\x1b" not in shown.out + shown.err
        page = (mine / "runs/tiny/report.html").read_text()
        assert "\x1b" not in page
        assert "<script>alert" not in page
        assert "<img src=x" not in page

    def test_a_result_that_is_edited_inside_the_run_is_refused(self, mine, capsys):
        assert run_command("import", "result.json") == 0
        kept = mine / "runs/tiny/bundles/field.result.json"
        kept.write_text(kept.read_text().replace('"conclusive": ', '"conclusive": 0'))
        assert run_command("profile", "runs/tiny", "-q") == 2
        assert "field.result.json" in capsys.readouterr().err
