import json
import os
import resource
import subprocess
import sys

import pytest
import yaml

from edgekd.cli import COMMANDS, main
from tests.pipeline.test_line import TINY, merged


def edgekd(*arguments, cwd=None, env=None):
    return subprocess.run(
        [sys.executable, "-m", "edgekd", *map(str, arguments)],
        capture_output=True, text=True, cwd=cwd, env={**os.environ, **(env or {})},
    )  # fmt: skip


def in_process(*arguments):
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    return caught.value.code or 0


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "compress.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


def test_help_does_not_import_torch_and_names_every_command():
    code = (
        "import sys; from edgekd.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'onnx', 'openvino', 'pydantic', 'sklearn', 'rich'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "HEAVY []" in result.stdout
    assert all(name in result.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, capsys):
    assert in_process(name, "--help") == 0
    assert "Usage: edgekd" in capsys.readouterr().out


def test_a_misspelt_command_gets_a_suggestion(capsys):
    assert in_process("compres") == 2
    assert "did you mean 'compress'" in capsys.readouterr().err


def test_init_writes_a_valid_commented_file_with_its_schema(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert in_process("init") == 0
    text = (tmp_path / "compress.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=./compress.schema.json")
    schema = json.loads((tmp_path / "compress.schema.json").read_text())
    import jsonschema

    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(text.replace("1e-4", "0.0001")), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"distil": {}}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"distill": {"methods": [{"kd": {"temp": 1}}]}}, schema)
    assert in_process("init") == 2, "an existing file is not overwritten"
    assert in_process("init", "--force") == 0


def test_methods_are_listed_with_their_papers(capsys):
    assert in_process("methods", "--json") == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert listed["kd"]["parameters"]["temperature"] == 4
    assert "2015" in listed["kd"]["paper"]
    assert all(entry["paper"] and entry["definition"] for entry in listed.values())
    assert in_process("methods") == 0
    text = capsys.readouterr().out
    assert "rkd: {weight: 1.0, distance: 25.0, angle: 50.0}" in text
    # What surprises whoever does not know it.
    assert "dkd: {weight: 1.0, warmup: 20," in text
    assert listed["ab"]["parameters"]["alone"] == 30


def test_schema_is_json(capsys):
    assert in_process("schema") == 0
    assert json.loads(capsys.readouterr().out)["properties"]["distill"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_call_edgekd(shell, capsys):
    assert in_process("completion", shell) == 0
    assert "_EDGEKD_COMPLETE" in capsys.readouterr().out


def test_completion_completes_commands():
    env = {"_EDGEKD_COMPLETE": "bash_complete", "COMP_WORDS": "edgekd comp", "COMP_CWORD": "1"}
    code = "from edgekd.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **env}
    )
    assert "compress" in result.stdout
    assert "completion" in result.stdout


def test_without_the_doctor_nothing_is_looked_at_before_distilling(config, tmp_path, capsys):
    brief = ("distill", config, "--set", "data.limit=300", "--out", tmp_path / "r")
    assert in_process(*brief, "--no-doctor") == 0
    assert "gradients: " not in capsys.readouterr().err
    assert in_process(*brief, "--force") == 0
    assert "gradients: " in capsys.readouterr().err


def test_compress_end_to_end_then_again_with_nothing_to_do(config, tmp_path):
    first = edgekd("compress", config, "--out", tmp_path / "r")
    assert first.returncode == 0, first.stderr
    assert "teacher" in first.stdout
    assert "report.html" in first.stdout
    assert "student" in first.stderr
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    again = edgekd("compress", config, "--out", tmp_path / "r")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "nothing to do" in again.stderr
    assert again.returncode == 0
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10

    document = json.loads(edgekd("compress", tmp_path / "r", "-q", "--json").stdout)
    assert document["schema"] == 1
    for stage in ("distill", "export", "verify", "profile", "gate"):
        result = edgekd(stage, tmp_path / "r", "-q", "--json")
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""
        assert json.loads(result.stdout)
    broken = edgekd(
        "gate", tmp_path / "r", "--set", "gate.budgets=[{metric: size, max: 1 B}]", "-q"
    )
    assert broken.returncode == 1
    assert "FAIL" in broken.stdout.upper()
    assert "is older than these figures" in broken.stdout

    budgets = tmp_path / "budgets.yaml"
    budgets.write_text("budgets:\n- {metric: size, max: 1 GB}\n")
    from_file = edgekd("gate", tmp_path / "r", "-q", "--budget", budgets, "--json")
    assert [c["metric"] for c in json.loads(from_file.stdout)["checks"]] == ["size", "size"]
    budgets.write_text("budgets:\n- {metric: sise, max: 1 GB}\n")
    wrong = edgekd("gate", tmp_path / "r", "-q", "--budget", budgets)
    assert wrong.returncode == 2
    assert f"{budgets}:2" in wrong.stderr

    # The student against itself: sizes are equal, files for other programs are written.
    compared = edgekd(
        "gate", tmp_path / "r", "-q", "--baseline", tmp_path / "r", "--no-rerun-baseline",
        "--set", "gate.budgets=[{metric: size_vs_baseline, max: 1 x}, {metric: latency_vs_baseline, "
        "max: 99 x}, {metric: memory_vs_baseline, max: 99 x}]",
        "--junit", tmp_path / "gate.xml", "--markdown", tmp_path / "gate.md", "--badge", tmp_path / "b.json",
    )  # fmt: skip
    assert compared.returncode == 0, compared.stderr
    assert "size_vs_baseline" in (tmp_path / "gate.xml").read_text()
    assert "✅ pass" in (tmp_path / "gate.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "b.json").read_text())["message"] == "pass"


def test_nothing_to_do_does_not_import_torch(config, tmp_path):
    assert edgekd("distill", config, "--out", tmp_path / "r", "-q").returncode == 0
    code = (
        f"import sys; from edgekd.cli import main\n"
        f"try: main(['distill', {str(config)!r}, '--out', {str(tmp_path / 'r')!r}])\n"
        "except SystemExit: pass\n"
        "print('HEAVY', sorted({'torch', 'sklearn', 'onnx', 'openvino'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "nothing to do" in result.stderr
    assert "HEAVY []" in result.stdout


class TestBadInput:
    """One clear message, the right exit code, no traceback."""

    def check(self, code, *parts, changes=None, arguments=(), tmp_path):
        path = tmp_path / "c.yaml"
        path.write_text(yaml.safe_dump(merged(TINY, changes or {})))
        result = edgekd("compress", path, "--out", tmp_path / "r", "-q", *arguments)
        assert result.returncode == code, result.stderr
        assert "Traceback" not in result.stderr
        assert result.stderr.count("error:") == 1
        for part in parts:
            assert part in result.stderr

    @pytest.mark.parametrize(
        ("changes", "code", "parts"),
        [
            (
                {"gate": {"budgets": [{"metric": "accuracy", "min": 99}]}},
                2,
                ['did you mean "99 %"'],
            ),
            ({"gate": {"budgets": [{"metric": "memory", "max": "-1 MiB"}]}}, 2, ["can never be"]),
            ({"gate": {"budgets": [{"metric": "accuracy", "min": "150 %"}]}}, 2, ["can never be"]),
            ({"data": {"image_size": 12}}, 2, ["[height, width]"]),
            ({"profile": {"targets": []}}, 2, ["should not be empty"]),
            (
                {"profile": {"max_seconds": 0.001}},
                2,
                ["(0.001) is smaller than min_seconds (0.05)"],
            ),
            ({"dta": {}}, 2, ["c.yaml:5", "did you mean 'data'"]),
            ({"seed": "x"}, 2, ["c.yaml:", "seed", "integer"]),
            ({"data": {"source": "idx:nowhere"}}, 2, ["nowhere"]),
            ({"data": {"source": "idxx:nowhere"}}, 2, ["idx"]),
            ({"data": {"source": "npz:$NO_SUCH_VARIABLE/x"}}, 2, ["NO_SUCH_VARIABLE"]),
            ({"teacher": {"weights": "nowhere.safetensors"}}, 2, ["nowhere", "teacher.weights"]),
            ({"teacher": {"model": "zoo:resnet57"}}, 2, ["resnet57", "resnet56"]),
            ({"student": {"model": "no_such_module:net"}}, 2, ["no_such_module"]),
            ({"student": {"args": {"hiden": [3]}}}, 2, ["hiden"]),
            ({"profile": {"targets": ["raspberry"]}}, 2, ["raspberry", "local"]),
            ({"teacher": {"train": {"learning_rate": 1e30, "warmup": 0.0}}}, 3, ["learning_rate"]),
        ],
    )
    def test_in_the_configuration(self, changes, code, parts, tmp_path):
        self.check(code, *parts, changes=changes, tmp_path=tmp_path)

    def test_a_pickle_as_weights(self, tmp_path):
        import pickle

        class Bomb:
            def __reduce__(self):
                return os.system, (f"touch {tmp_path}/executed",)

        (tmp_path / "w.pt").write_bytes(pickle.dumps(Bomb()))
        self.check(2, "w.pt", changes={"teacher": {"weights": "w.pt"}}, tmp_path=tmp_path)
        assert not (tmp_path / "executed").exists()

    def test_a_network_with_another_number_of_classes(self, tmp_path):
        (tmp_path / "nets.py").write_text(
            "from torch import nn\n"
            "def seven(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))\n"
        )
        for role in ("teacher", "student"):
            changes = {role: {"model": "nets.py:seven", "args": {}}}
            base = {k: v for k, v in TINY.items() if k != role}
            path = tmp_path / f"{role}.yaml"
            path.write_text(yaml.safe_dump({**base, **changes}))
            result = edgekd("distill", path, "--out", tmp_path / role, "-q")
            assert result.returncode == 2
            assert role in result.stderr
            assert "7" in result.stderr
            assert "10" in result.stderr

    def test_a_text_is_not_called_a_pickle(self, tmp_path):
        (tmp_path / "text.npz").write_text("hello")
        changes = {"data": {"source": "npz:text.npz"}}
        self.check(2, "text.npz: not an .npz archive", changes=changes, tmp_path=tmp_path)
        changes = {"teacher": {"weights": "text.npz"}}
        self.check(2, "text.npz: not a checkpoint", changes=changes, tmp_path=tmp_path)

    def test_a_network_whose_answer_depends_on_its_batch_does_not_pass_verification(self, tmp_path):
        (tmp_path / "nets.py").write_text(
            "from torch import nn\n"
            "class Net(nn.Sequential):\n"
            "    def forward(self, x):\n"
            "        y = super().forward(x)\n"
            "        return y - y.mean(0, keepdim=True)\n"
            "def net(num_classes, hidden): return Net(nn.Flatten(), nn.Linear(64, num_classes))\n"
        )
        changes = {"student": {"model": "nets.py:net", "args": {}}}
        self.check(3, "batch 1", changes=changes, tmp_path=tmp_path)

    def test_an_empty_folder_and_a_corrupt_image(self, tmp_path):
        (tmp_path / "empty").mkdir()
        self.check(2, "empty", changes={"data": {"source": "folder:empty"}}, tmp_path=tmp_path)
        for name in ("a", "b"):
            (tmp_path / "images" / name).mkdir(parents=True)
            (tmp_path / "images" / name / "x.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
        self.check(2, "x.png", changes={"data": {"source": "folder:images"}}, tmp_path=tmp_path)

    @pytest.mark.parametrize(
        ("arguments", "part"),
        [
            (("compress",), "edgekd init"),
            (("compress", "nowhere.yaml"), "nowhere.yaml"),
            (("compress", "--example", "cats"), "digits"),
            (("compress", "x.yaml", "--example", "digits"), "not both"),
            (("compress", "."), "not a run folder"),
            (("compress", "--example", "digits", "--set", "x"), "KEY=VALUE"),
            (("compress", "--example", "digits", "--out", "/proc/x"), "/proc/x"),
            (("compress", "--example", "digits", "--out", "a" * 300), "too long"),
            (("compress", "--example", "digits", "--out", "/usr"), "not a run folder"),
            (
                ("compress", "--example", "digits", "--set", "distil.epochs=1"),
                "--set distil.epochs: ",
            ),
            (
                ("compress", "--example", "digits", "--set", "distill.epochs=x"),
                "--set distill.epochs: ",
            ),
            (("compress", "--example", "digits", "--set", "teacher.weights=."), "is a folder"),
            (("targets", "show", "lokal"), "edgekd targets: unknown target"),
            (("compress", "--nonsense"), "--nonsense"),
            (("gate", "--example", "digits", "--out", "/dev/null"), "/dev/null"),
        ],
    )
    def test_in_the_arguments(self, arguments, part, tmp_path):
        result = edgekd(*arguments, cwd=tmp_path)
        assert result.returncode == 2
        assert "Traceback" not in result.stderr
        assert part in result.stderr


def test_a_bug_of_ours_is_one_line_and_a_log_not_a_traceback(monkeypatch, capsys, tmp_path):
    import edgekd.cli.schema

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(edgekd.cli.schema, "config_schema", lambda: 1 / 0)
    assert in_process("schema") == 3
    errors = capsys.readouterr().err
    assert "ZeroDivisionError" in errors
    assert "Traceback" not in errors
    (log,) = tmp_path.glob("edgekd-crash-*.log")
    assert "Traceback" in log.read_text()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run up to the student, never changed by a test."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "compress.yaml").write_text(yaml.safe_dump(TINY))
    assert edgekd("distill", "compress.yaml", "--out", "run", "-q", cwd=folder).returncode == 0
    return folder / "run"


def test_an_override_that_fails_leaves_the_run_as_it_was(trained):
    before = (trained / "run.json").read_bytes()
    failed = edgekd("distill", trained, "-q", "--set", "distill.learning_rate=1e30")
    assert failed.returncode == 3
    assert (trained / "run.json").read_bytes() == before
    again = edgekd("distill", trained)
    assert again.returncode == 0
    assert "nothing to do" in again.stderr


def test_what_a_users_module_prints_does_not_get_into_the_json(tmp_path):
    (tmp_path / "nets.py").write_text(
        "print('hello')\nfrom torch import nn\n"
        "def net(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    config = merged(TINY, {"student": {"model": "nets.py:net"}})
    config["student"]["args"] = {}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    result = edgekd("distill", "c.yaml", "--json", cwd=tmp_path)
    assert json.loads(result.stdout)["student"]["test"]["total"] > 0
    assert "hello" in result.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_an_output_that_cannot_be_written_or_is_closed_is_no_crash(trained):
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "edgekd", "schema"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert result.returncode == 3
    assert "standard output cannot be written" in result.stderr
    command = f"{sys.executable} -m edgekd schema; echo $? >&2"
    piped = subprocess.run(["bash", "-c", f"({command}) | true"], capture_output=True, text=True)
    assert "failed" not in piped.stderr


def test_a_terminal_that_knows_ascii_only_still_gets_the_table(trained):
    result = edgekd("distill", trained, env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
    assert result.returncode == 0
    assert "parameters" in result.stdout


def test_the_table_in_a_pipe_is_whole(trained):
    lines = edgekd("distill", trained).stdout.splitlines()
    row = next(line for line in lines if line.startswith("parameters"))
    assert len(row.split()) >= 4


def test_a_configuration_that_does_not_end_is_refused():
    result = subprocess.run(
        [sys.executable, "-m", "edgekd", "gate", "/dev/zero"],
        capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    assert result.returncode == 2
    assert "too large" in result.stderr


def test_a_broken_target_does_not_hide_the_others(tmp_path):
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets/bad.yaml").write_text("name: bad\nclass: toaster\n")
    result = edgekd("targets", "list", cwd=tmp_path)
    assert result.returncode == 2
    assert "\nlocal " in result.stdout
    assert "bad.yaml:2" in result.stderr
