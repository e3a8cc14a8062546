"""The assembly line on real data: what is done again, what is not, and what a crash leaves behind."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import edgekd
from edgekd import api
from edgekd.artifacts import sha256_file
from edgekd.cli.summary import print_summary
from edgekd.errors import Interrupted, StageError, UsageError
from edgekd.gate import baseline as gate_baseline
from edgekd.gate.baseline import Pair, _check_comparable
from edgekd.gate.counterparts import Counterpart
from edgekd.pipeline.line import run_line
from edgekd.pipeline.run import Run
from edgekd.pipeline.stages import NAMES
from edgekd.profile.bundle import _check_verified
from edgekd.progress import Silent
from edgekd.report.data import document
from edgekd.results import VerifyReport
from tests.heard import Heard

# Real data and networks, as small and short as they can be.
TINY = {
    "name": "tiny",
    "teacher": {
        "model": "zoo:mlp",
        "args": {"hidden": [64]},
        "train": {"epochs": 4, "threads": 1, "learning_rate": 0.05},
    },
    "student": {"model": "zoo:mlp", "args": {"hidden": [16]}},
    "distill": {"epochs": 4, "threads": 1, "learning_rate": 0.05},
    "export": {"producer": "onnx"},
    "profile": {
        "min_seconds": 0.05, "max_seconds": 0.5, "interval": 0.5, "launches": 1, "operators": False,
    },
    "gate": {"budgets": [{"metric": "accuracy", "min": "30 %"}]},
    "history": None,
}  # fmt: skip


def merged(base, changes):
    result = dict(base)
    for key, value in changes.items():
        inner = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if inner else value
    return result


def line(out, until="report", *, force=None, progress=None, **changes):
    config, base = api.resolve(merged(TINY, changes))
    return run_line(
        config,
        base=base,
        out=out,
        until=until,
        force=force,
        progress=progress or Silent(),
        command="test",
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A complete tiny run, never changed by a test."""
    path = tmp_path_factory.mktemp("line") / "tiny"
    run, done = line(path)
    assert done == list(NAMES)
    return run


@pytest.fixture
def run(finished, tmp_path):
    """A private copy of the complete run; its neighbours are its own."""
    path = tmp_path / "runs" / "tiny"
    shutil.copytree(finished.path, path)
    return Run(path)


def weights(run, role="student"):
    return sha256_file(run.path / role / "model.safetensors")


def test_a_complete_run_has_every_artifact(finished):
    for name in (
        "run.json", "report.html", "report.json", "teacher/model.safetensors",
        "student/model.safetensors", "export/student.onnx", "export/student.xml",
        "export/teacher.bin", "verify/parity.json", "verify/logits.npz", "verify/examples.npz",
        "profile/profile.json", "gate/gate.json", "MODEL_CARD.md", "sbom.json",
    ):  # fmt: skip
        assert (finished.path / name).stat().st_size > 0, name
    assert finished.exit_code == 0
    assert not (finished.path / ".partial").exists()


def test_verify_and_profile_speak_of_every_file_in_its_runtime(finished):
    expected = {
        (role, runtime)
        for role in ("teacher", "student")
        for runtime in ("onnxruntime", "openvino")
    }
    assert {(f.role, f.runtime) for f in finished.verify.files} == expected
    assert {(m.role, m.runtime) for m in finished.profile.measurements} == expected
    assert all(f.passed and f.precision == "f32" for f in finished.verify.files)
    assert all(m.provenance == "measured" for m in finished.profile.measurements)


def test_nothing_is_done_twice(run):
    assert line(run.path)[1] == []


@pytest.mark.parametrize(
    ("changes", "redone"),
    [
        ({"gate": {"on_inconclusive": "warn"}}, ["gate", "report"]),
        ({"name": "other"}, ["report"]),
        (
            {"distill": {"methods": [{"kd": {"temperature": 2}}]}},
            ["distill", "export", "quantize", "verify", "profile", "gate", "report"],
        ),
        ({"distill": {"checkpoint_every": 1}}, ["report"]),
        ({"verify": {"tolerance": 1e-3}}, ["verify", "gate", "report"]),
        ({"profile": {"min_seconds": 0.06}}, ["profile", "gate", "report"]),
        ({"quantize": {}}, ["quantize", "verify", "profile", "gate", "report"]),
        ({"seed": 1}, list(NAMES)),
    ],
)
def test_a_change_redoes_exactly_what_depends_on_it(run, changes, redone):
    assert line(run.path, **changes)[1] == redone


def test_a_quantized_run_deploys_gates_and_reports_int8_files(run):
    line(
        run.path,
        quantize={"recipe": "coreset"},
        gate={"budgets": [{"metric": "accuracy", "min": "30 %"},
                          {"metric": "size", "max": "1 MB", "variant": "f32"}]},
    )  # fmt: skip
    files = {f.name: f for f in run.quantize.files}
    assert list(files) == ["student-int8"]
    assert {f.format for f in run.quantize.files} == {"onnx", "openvino"}
    assert set(run.quantize.calibration.samples)
    measured = {(m.runtime, m.role, m.variant) for m in run.profile.measurements}
    assert ("openvino", "student", "int8") in measured
    assert {(c.runtime, c.variant) for c in run.profile.comparisons} == {
        (runtime, variant) for runtime in ("onnxruntime", "openvino") for variant in ("f32", "int8")
    }
    int8 = [f for f in run.verify.files if f.variant == "int8"]
    assert len(int8) == 2
    for parity in int8:
        assert parity.snr > 15
        assert parity.agreement > 0.9
    assert {(c.metric, c.variant) for c in run.gate.checks} == {
        ("accuracy", "int8"),
        ("size", "f32"),
    }
    assert "int8 student" in (run.path / "report.html").read_text(encoding="utf-8")
    with_test = {int(i) for i in np.load(run.path / "verify/logits.npz")["indices"]}
    assert not with_test & set(run.quantize.calibration.samples)


def test_a_lost_or_damaged_artifact_is_made_again(run):
    (run.path / "gate/gate.json").unlink()
    heard = Heard()
    assert line(run.path, progress=heard)[1] == ["gate"]
    assert "  gate/gate.json is missing: gate is done again" in heard.lines
    weights_file = run.path / "student/model.safetensors"
    before = sha256_file(weights_file)
    data = bytearray(weights_file.read_bytes())
    data[-1] ^= 1
    weights_file.write_bytes(data)
    (run.path / "student/metrics.json").unlink()
    assert line(run.path, "distill", progress=heard)[1] == ["distill"]
    assert sha256_file(weights_file) == before
    said = "student/metrics.json is missing (and 1 more): distill is done again"
    assert f"  {said}" in heard.lines


def test_a_touched_artifact_is_still_what_it_was(run):
    os.utime(run.path / "export/student.onnx")
    assert line(run.path)[1] == []


def test_force_does_a_stage_again(run):
    assert line(run.path, force="gate")[1] == ["gate"]


def test_renewing_the_report_keeps_the_command_that_made_the_run(run):
    config, base = api.resolve(TINY)

    def again(config, **arguments):
        run_line(config, base=base, out=run.path, progress=Silent(), **arguments)
        return run.manifest.command

    assert again(config, force="report", command="edgekd report tiny") == "test"
    changed, _ = api.resolve({**TINY, "name": "other"})
    assert again(changed, command="edgekd report tiny --set name=other").endswith("name=other")


def test_verify_keeps_samples_that_only_one_model_gets_right_and_none_where_none_may_be(run):
    def kept():
        with np.load(run.path / "verify/examples.npz", allow_pickle=False) as examples:
            return examples["positions"], examples["inputs"]

    with np.load(run.path / "verify/logits.npz", allow_pickle=False) as logits:
        labels, indices = logits["labels"], logits["indices"]
        right = [logits[f"pytorch/{role}"].argmax(1) == labels for role in ("teacher", "student")]
    positions, inputs = kept()
    assert 0 < len(positions) <= 12
    assert (right[0] != right[1])[positions].all()
    from sklearn.datasets import load_digits

    images = load_digits().images[indices[positions]]
    np.testing.assert_array_equal(inputs.reshape(images.shape), images)
    assert line(run.path, verify={"examples": 0})[1] == ["verify", "gate", "report"]
    assert len(kept()[0]) == 0
    assert "data:image" not in (run.path / "report.html").read_text(encoding="utf-8")


def test_until_stops_there(tmp_path):
    run, done = line(tmp_path / "r", until="teacher")
    assert done == ["teacher"]
    assert not (run.path / "student").exists()


def test_a_neighbouring_run_with_the_same_teacher_lends_it(run):
    other, _ = line(run.path.parent / "other", "distill", student={"args": {"hidden": [8]}})
    record = other.manifest.stages["teacher"]
    assert record.reused_from == str(run.path)
    assert weights(other, "teacher") == weights(run, "teacher")
    assert weights(other) != weights(run)


def test_a_neighbour_whose_file_was_changed_lends_nothing_however_well_it_hides_that(run):
    path = run.path / "teacher/model.safetensors"
    honest, stat = sha256_file(path), path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other, _ = line(run.path.parent / "other", "teacher")
    assert other.manifest.stages["teacher"].reused_from is None
    assert weights(other, "teacher") == honest


def test_the_same_seed_gives_the_same_weights(finished, tmp_path):
    again, _ = line(tmp_path / "alone" / "r", "distill")
    assert weights(again) == weights(finished)
    assert weights(again, "teacher") == weights(finished, "teacher")


def test_training_that_is_killed_goes_on_to_the_same_weights(finished, tmp_path):
    config = tmp_path / "c.json"
    config.write_text(
        json.dumps(
            merged(
                TINY,
                {"distill": {"checkpoint_every": 0}, "teacher": {"train": {"checkpoint_every": 0}}},
            )
        )
    )
    out = tmp_path / "alone" / "r"
    command = [sys.executable, "-m", "edgekd", "distill", str(config), "--out", str(out), "-q"]
    kills = 0
    for delay in (0.02, 0.1, 0.2, 0.3):
        process = subprocess.Popen(command)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if list(out.glob(".partial/*/checkpoint.pt")):
                time.sleep(delay)
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 2, "the training was never killed in the middle"
    subprocess.run(command, check=True)
    assert weights(Run(out), "teacher") == weights(finished, "teacher")
    assert weights(Run(out)) == weights(finished)


def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(finished, tmp_path):
    config = tmp_path / "c.json"
    config.write_text(json.dumps(TINY))
    out = tmp_path / "alone" / "r"
    command = [sys.executable, "-m", "edgekd", "distill", str(config), "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(out.glob(".partial/teacher-*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert "Traceback" not in errors
    if process.returncode == 130:
        assert "same command" in errors
    subprocess.run([*command, "-q"], check=True)
    assert weights(Run(out)) == weights(finished)


# In a mount namespace of its own, where the folder cannot be written, whoever runs it.
READ_ONLY = (
    "unshare", "-rm", "sh", "-c",
    'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" || exit 77; exec "$0" -c "$2" "$1/tiny"',
)  # fmt: skip
READS = """
import sys
from edgekd.cli import main
run = sys.argv[1]
for command in (
    ["report", run], ["knowledge", "info", run], ["distill", run, "--set", "distill.epochs=9"],
):
    try:
        main(command)
    except SystemExit as end:
        print(command[0], "ended with", end.code or 0, flush=True)
"""


def test_a_finished_run_that_cannot_be_written_is_shown(finished, tmp_path):
    folder = tmp_path / "runs"
    shutil.copytree(finished.path.parent, folder)
    for lock in (folder / "tiny/.lock", *folder.glob(".knowledge/*/*.lock")):
        lock.unlink()
    result = subprocess.run(
        [*READ_ONLY, sys.executable, str(folder), READS],
        capture_output=True, text=True,
    )  # fmt: skip
    if result.returncode == 77 or "unshare" in result.stderr:
        pytest.skip("needs the right to mount a folder to be read only")
    ends = [line for line in result.stdout.splitlines() if "ended with" in line]
    codes = [int(line.rpartition(" ")[2]) for line in ends]
    assert codes == [0, 0, 2], result.stdout + result.stderr
    assert "nothing to do" in result.stderr
    assert "% known" in result.stdout
    assert "cannot be written: Read-only file system" in result.stderr


def test_a_lock_that_is_held_is_seen_where_the_folder_cannot_be_written(run, monkeypatch):
    opened = os.open

    def read_only(path, flags, *mode):
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opened(path, flags, *mode)

    with run.locked():
        monkeypatch.setattr(os, "open", read_only)
        with pytest.raises(UsageError, match="another edgekd"), run.locked():
            pass


def test_two_commands_never_write_the_same_run(run):
    with run.locked(), pytest.raises(UsageError, match="another edgekd"):
        line(run.path)


def test_a_child_that_inherited_the_lock_does_not_keep_it(run):
    with run.locked():
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
    try:
        with run.locked():
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"quantize": {"recipe": "statc"}}, "unknown calibration recipe 'statc'"),
        ({"profile": {"targets": ["locl"]}}, "unknown target 'locl'"),
        ({"gate": {"metrics": "nowhere.py:f"}}, "nowhere.py"),
        ({"gate": {"baseline": "nowhere"}}, "no such run or model file"),
        (
            {"gate": {"budgets": [{"metric": "size", "max": "1 MB", "target": "pi"}]}},
            "nothing is measured on target 'pi'",
        ),
        (
            {"gate": {"budgets": [{"metric": "class_recall", "label": "x", "min": "1 %"}]}},
            "no class is called 'x'",
        ),
    ],
)
def test_what_a_later_stage_would_refuse_is_told_before_any_training(tmp_path, sections, said):
    with pytest.raises(UsageError, match=said):
        api.compress(sections, out=tmp_path / "run")
    assert not (tmp_path / "run/teacher").exists()


def test_a_failing_stage_leaves_earlier_artifacts_intact(run):
    before = {
        p: sha256_file(p) for p in run.path.rglob("*") if p.is_file() and p.name != "run.json"
    }
    with pytest.raises(StageError, match="loss"):
        line(run.path, distill={"learning_rate": 1e30, "warmup": 0.0, "optimizer": "sgd"})
    after = {p: sha256_file(p) for p in before}
    assert after == before


def test_a_tolerance_that_no_file_meets_fails_the_run(run):
    before = (run.path / "verify/parity.json").read_bytes()
    with pytest.raises(
        StageError, match=r"differ from those of PyTorch(.|\n)*verify\.tolerance"
    ) as caught:
        line(run.path, verify={"tolerance": 1e-12})
    assert caught.value.exit_code == 3
    # Every comparison is there to be looked at, and is not the stage's result.
    log = run.path / "verify-failed.json"
    assert str(log) in str(caught.value)
    found = VerifyReport.read(log)
    assert {edge.path for edge in found.edges} == {file.path for file in run.files}
    assert (run.path / "verify/parity.json").read_bytes() == before
    assert line(run.path, until="verify")[1] == ["verify"]
    assert not log.exists()


def told(run, capsys):
    """What a command says at its end."""
    capsys.readouterr()
    print_summary(run)
    return capsys.readouterr().out


def test_what_was_said_of_files_that_were_made_anew_is_not_said_again(run, capsys):
    assert "not done yet" not in told(run, capsys)
    line(run.path, "quantize", quantize={})
    text = told(run, capsys)
    assert "not done yet: verify, profile, gate" in text
    assert "parity" not in text
    assert "is older than these figures" in text
    assert document(run)["missing"] == ["verify", "profile", "gate"]
    with pytest.raises(UsageError, match="stage verify is not done, or its files were changed"):
        _check_verified(run)
    # The very same files as before: what was said holds again, and nothing is measured anew.
    line(run.path, "quantize")
    assert "not done yet" not in told(run, capsys)
    assert line(run.path)[1] == []


def test_a_verify_that_fails_withdraws_the_verdict(run, capsys):
    with pytest.raises(StageError, match="differ from those of PyTorch"):
        line(run.path, verify={"tolerance": 1e-12})
    text = told(run, capsys)
    assert "not done yet: verify, gate" in text
    assert "is older than these figures" in text
    assert run.manifest.config["verify"]["tolerance"] > 1e-12
    assert line(run.path)[1] == ["verify"]
    assert "not done yet" not in told(run, capsys)


@pytest.mark.parametrize("spoilt", ["deleted", "edited"])
def test_a_later_stage_that_was_spoilt_is_not_done_for_a_command_that_stops_before(
    run, capsys, spoilt
):
    if spoilt == "deleted":
        shutil.rmtree(run.path / "verify")
    else:
        (run.path / "verify/parity.json").write_text("{}")
    line(run.path, "quantize")
    assert "not done yet: verify, gate" in told(run, capsys)


def test_the_precision_of_a_target_is_verified_too(run, tmp_path):
    (tmp_path / "runs" / "targets").mkdir()
    (tmp_path / "runs" / "targets" / "half.yaml").write_text(
        "{name: half, class: cpu, transport: local, runtimes: [openvino], threads: 1, precision: bf16}"
    )
    config, _ = api.resolve(merged(TINY, {"profile": {"targets": ["local", "half"]}}))
    result, done = run_line(
        config,
        base=tmp_path / "runs",
        out=run.path,
        until="verify",
        progress=Silent(),
        command="test",
    )
    assert done == ["verify"]
    lower = [edge for edge in result.verify.edges if edge.precision != "f32"]
    # bf16 on both models' IR, or a note where this CPU has none.
    assert [edge.path for edge in lower] == ["export/teacher.xml", "export/student.xml"] or any(
        "bf16" in note for note in result.verify.notes
    )


def test_layers_are_compared_where_verify_fails_too(run):
    import onnx
    from onnx import numpy_helper

    from edgekd.pipeline.line import config_of
    from edgekd.verify.stage import layers

    good = layers(run, *config_of(run))
    assert [(found.path, found.first) for found in good] == [
        (file.path, None) for file in run.files
    ]
    path = run.path / "export/student.onnx"
    model = onnx.load(path)
    last = next(w for w in model.graph.initializer if len(w.dims) == 2 and w.dims[0] == 10)
    last.CopyFrom(numpy_helper.from_array(1.5 * numpy_helper.to_array(last), last.name))
    onnx.save(model, path)
    broken = {found.path: found for found in layers(run, *config_of(run))}["export/student.onnx"]
    assert broken.first is not None
    assert broken.layers[broken.first].weights == last.name
    assert broken.inputs.startswith("batch ")


def test_layers_past_their_tolerance_are_exit_code_3(run):
    from click.testing import CliRunner

    from edgekd.cli.verify import command

    def asked(*options):
        return CliRunner().invoke(command, [str(run.path), "--layers", "-q", *options])

    assert asked().exit_code == 0
    strict = asked("--set", "verify.tolerance=1e-12")
    assert isinstance(strict.exception, StageError)
    assert strict.exception.exit_code == 3
    assert "at most 1e-12 is allowed" in strict.exception.what
    assert "verify fails at " in strict.output


def test_a_broken_budget_is_exit_code_1_and_still_a_report(run):
    result, done = line(run.path, gate={"budgets": [{"metric": "size", "max": "1 B"}]})
    assert done == ["gate", "report"]
    assert result.exit_code == 1


def test_a_run_that_is_not_one_is_refused(tmp_path):
    with pytest.raises(UsageError, match="not a run folder"):
        Run.open(tmp_path)


def test_an_edited_result_is_one_clear_error(run):
    path = run.path / "gate/gate.json"
    path.write_text('{"verdict": "maybe"}')
    with pytest.raises(UsageError, match=r"gate\.json"):
        run.gate  # noqa: B018


@pytest.mark.parametrize("part", ["../../../etc/passwd", "/etc/passwd", "export/link", "a\0b"])
@pytest.mark.parametrize("key", ["path", "files"])
def test_a_run_that_names_files_outside_its_folder_is_refused(run, key, part):
    (run.path / "export/link").symlink_to("/etc/passwd")
    path = run.path / "export/export.json"
    export = json.loads(path.read_text())
    export["files"][0][key] = part if key == "path" else [part]
    path.write_text(json.dumps(export))
    with pytest.raises(UsageError, match=r"export\.json: .* is outside the run folder"):
        run.files  # noqa: B018


def test_quantize_follows_no_path_out_of_the_run_folder(run):
    path, manifest = run.path / "export/export.json", run.path / "run.json"
    honest = sha256_file(path)
    export = json.loads(path.read_text())
    student = next(file for file in export["files"] if file["role"] == "student")
    student["path"] = "../../../etc/passwd"
    path.write_text(json.dumps(export))
    stat = path.stat()
    value = json.loads(manifest.read_text().replace(honest, sha256_file(path)))
    value["stages"]["export"]["artifacts"]["export/export.json"] |= {
        "size": stat.st_size, "mtime_ns": stat.st_mtime_ns,
    }  # fmt: skip
    manifest.write_text(json.dumps(value))
    with pytest.raises(UsageError, match=r"passwd' is outside the run folder"):
        line(run.path, "quantize", quantize={})
    assert not (run.path / ".partial").exists()


KILLED_WHILE_IT_CALIBRATES = """
import os, sys
from edgekd.cli import main
from edgekd.quantize.backends import onnxruntime
onnxruntime._Reader.get_next = lambda reader: os._exit(9)
main()
"""


def test_a_calibration_that_was_killed_leaves_nothing_once_it_was_done_again(run, tmp_path):
    (tmp_path / "calibration").mkdir()
    (tmp_path / "calibration/ort.yaml").write_text("{name: ort, backend: onnxruntime, samples: 8}")
    config = tmp_path / "c.json"
    config.write_text(json.dumps(merged(TINY, {"quantize": {"recipe": "ort"}})))
    arguments = ["quantize", str(config), "--out", str(run.path), "-q"]
    killed = subprocess.run([sys.executable, "-c", KILLED_WHILE_IT_CALIBRATES, *arguments])
    assert killed.returncode == 9
    assert list(run.path.glob(".partial/quantize-*/.edgekd-calibrate-*"))
    subprocess.run([sys.executable, "-m", "edgekd", *arguments], check=True)
    assert not (run.path / ".partial").exists()
    assert not list((run.path / "quantized").glob(".*"))


def test_an_unwritable_output_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        line(tmp_path / "file" / "run", "teacher")


def test_a_full_disk_is_one_clear_error_and_earlier_artifacts_stay(tmp_path, finished):
    small = tmp_path / "small"
    small.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(small)], capture_output=True
        ).returncode
    ):
        pytest.skip("needs the right to mount a small file system")
    try:
        run, _ = line(small / "r", "teacher", teacher={"args": {"hidden": [256]}})
        before = weights(run, "teacher")
        with pytest.raises(StageError, match="disk is full"):
            line(small / "r", "distill", teacher={"args": {"hidden": [256]}},
                 student={"args": {"hidden": [4096]}})  # fmt: skip
        assert weights(run, "teacher") == before
        assert run.manifest.stages["teacher"]
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_interrupted_has_its_own_exit_code():
    assert Interrupted("x").exit_code == 130


def test_the_api_offers_every_stage(run, tmp_path):
    result = edgekd.gate(TINY, out=run.path)
    assert isinstance(result, Run)
    assert result.gate.verdict == "pass"
    assert Path(edgekd.compress(TINY, out=run.path).path, "report.html").exists()
    with pytest.raises(AttributeError):
        edgekd.nothing  # noqa: B018


def test_the_api_takes_a_run_folder_and_refuses_nonsense(run):
    assert edgekd.gate(run.path).path == run.path
    assert edgekd.gate(str(run.path), overrides="gate.on_inconclusive=warn").exit_code == 0
    with pytest.raises(UsageError, match="config is a int"):
        edgekd.compress(5)


@pytest.fixture(scope="module")
def slower(tmp_path_factory):
    """A run whose student is several times as large, on the same data."""
    path = tmp_path_factory.mktemp("slower") / "slow"
    line(path, student={"model": "zoo:mlp", "args": {"hidden": [1024, 1024]}})
    return Run(path)


@pytest.mark.slow
def test_a_student_much_slower_and_larger_than_the_baselines_is_caught(run, slower):
    line(slower.path, student={"model": "zoo:mlp", "args": {"hidden": [1024, 1024]}},
         gate={"baseline": str(run.path), "budgets": []})  # fmt: skip
    verdicts = {(c.metric, c.runtime): c for c in slower.gate.checks}
    for runtime in ("onnxruntime", "openvino"):
        latency = verdicts["latency_vs_baseline", runtime]
        assert latency.verdict == "fail"
        assert latency.interval[0] > 1.03
        assert verdicts["size_vs_baseline", runtime].value > 10
    assert slower.exit_code == 1


def test_the_very_same_run_is_no_regression_and_is_not_measured_again(run, finished, monkeypatch):
    monkeypatch.setattr(gate_baseline, "launches", None)
    gate = {"baseline": str(finished.path), "rerun_baseline": False, "budgets": [
        {"metric": "accuracy_vs_baseline", "max": "0 points"},
        {"metric": "size_vs_baseline", "max": "1 x"},
        {"metric": "latency_vs_baseline", "max": "9 x"},
        {"metric": "memory_vs_baseline", "max": "9 x"},
    ]}  # fmt: skip
    assert line(run.path, gate=gate)[1] == ["gate", "report"]
    assert run.exit_code == 0
    assert {c.value for c in run.gate.checks if c.metric == "accuracy_vs_baseline"} == {0.0}
    assert line(run.path, gate=gate)[1] == []


@pytest.mark.slow
def test_records_that_cannot_be_compared_are_refused_unless_allowed(run, finished, tmp_path):
    gate = {"baseline": str(tmp_path / "nowhere")}
    with pytest.raises(UsageError, match="no such run or model file"):
        line(run.path, gate=gate)
    other = tmp_path / "other" / "run"
    shutil.copytree(finished.path, other)
    profile = json.loads((other / "profile/profile.json").read_text())
    profile["environment"]["local"]["cpu_model"] = "Cortex-A76"
    (other / "profile/profile.json").write_text(json.dumps(profile))
    gate = {"baseline": str(other), "rerun_baseline": False, "on_inconclusive": "warn",
            "budgets": [{"metric": "latency_vs_baseline", "max": "20 x"}]}  # fmt: skip
    recorded = {"latency_vs_baseline", "memory_vs_baseline"}
    with pytest.raises(UsageError, match=r"machine was Cortex-A76(.|\n)*gate\.allow: \[machine\]"):
        line(run.path, gate=gate)
    line(run.path, gate=gate | {"allow": ["machine"]})
    assert run.exit_code == 0
    assert {c.metric for c in run.gate.checks if "not run again" in c.text} == recorded
    # Without its models there is nothing to run again; its records still are.
    model = other / "export/student.onnx"
    whole = model.read_bytes()
    model.write_bytes(whole[:-1] + b"x")
    with pytest.raises(UsageError, match=r"student\.onnx: is not the file that the run made"):
        line(run.path, gate=gate | {"allow": ["machine"]})
    model.write_bytes(whole)
    for path in other.glob("export/student.*"):
        path.unlink()
    line(run.path, gate=gate | {"rerun_baseline": None, "allow": ["machine"]}, force="gate")
    assert {c.metric for c in run.gate.checks if "not run again" in c.text} == recorded
    with pytest.raises(UsageError, match="model files are gone"):
        line(run.path, gate=gate | {"rerun_baseline": True})
    line(other, "verify", data={"seed": 5})
    with pytest.raises(UsageError, match="tested on other samples"):
        line(run.path, gate=gate | {"allow": ["machine"]})


@pytest.mark.parametrize(("until", "lacking"), [("export", "verify"), ("verify", "profile")])
def test_a_baseline_that_was_made_anew_in_part_is_refused(run, finished, tmp_path, until, lacking):
    other = tmp_path / "other" / "run"
    shutil.copytree(finished.path, other)
    line(other, until, distill={"methods": [{"kd": {"temperature": 2}}]})
    message = rf"has no {lacking} of the files that are there now(.|\n)*`edgekd {lacking} {other}`"
    with pytest.raises(UsageError, match=message):
        line(run.path, gate={"baseline": str(other)})


@pytest.mark.parametrize("spoilt", ["empty", "cut short", "missing", "no archive"])
def test_logits_of_a_baseline_that_cannot_be_read_are_a_clear_error(run, tmp_path, spoilt):
    other = tmp_path / "other" / "run"
    shutil.copytree(run.path, other)
    path = other / "verify/logits.npz"
    whole = path.read_bytes()
    if spoilt == "missing":
        path.unlink()
    elif spoilt == "no archive":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        path.write_bytes(b"" if spoilt == "empty" else whole[: len(whole) // 2])
    gate = {"baseline": str(other), "rerun_baseline": False}
    with pytest.raises(UsageError, match=r"other/run/verify/logits\.npz: "):
        line(run.path, gate=gate)


def test_a_baseline_that_was_edited_is_compared_anew(run, tmp_path):
    other = tmp_path / "other" / "run"
    shutil.copytree(run.path, other)
    gate = {"baseline": str(other), "rerun_baseline": False, "on_inconclusive": "warn", "budgets": [
        {"metric": "latency_vs_baseline", "max": "9 x"},
        {"metric": "memory_vs_baseline", "max": "9 x"},
    ]}  # fmt: skip
    line(run.path, gate=gate)
    assert line(run.path, gate=gate)[1] == []
    path = other / "profile/profile.json"
    profile = json.loads(path.read_text())
    for m in profile["measurements"]:
        m["size"] //= 10
    path.write_text(json.dumps(profile))
    assert "gate" in line(run.path, gate=gate)[1]
    assert run.exit_code == 1
    for m in profile["measurements"]:
        m["latency"]["batch_size"] = 7
    path.write_text(json.dumps(profile))
    with pytest.raises(UsageError, match=r"batch_size was 7, now 1"):
        line(run.path, gate=gate)


def test_machines_that_neither_run_knows_are_not_taken_for_the_same():
    records = SimpleNamespace(target="local", precision="f32", threads=1, runtime_version="1",
                              latency=SimpleNamespace(batch_size=1))  # fmt: skip
    candidate = SimpleNamespace(profile=SimpleNamespace(environment={"local": {}}))
    pair = Pair(records, Counterpart([], 1, records, {}))
    baseline = SimpleNamespace(where="gate.baseline x")
    with pytest.raises(UsageError, match=r"neither run knows the machine(.|\n)*\[machine\]"):
        _check_comparable(candidate, baseline, [pair], [])
    _check_comparable(candidate, baseline, [pair], ["machine"])


@pytest.mark.slow
def test_a_model_file_is_a_baseline_tested_and_measured_here(run, slower, tmp_path):
    path = tmp_path / "production.onnx"
    shutil.copy(run.path / "export/student.onnx", path)
    student = {"model": "zoo:mlp", "args": {"hidden": [1024, 1024]}}
    line(slower.path, student=student, gate={"baseline": str(path), "budgets": []})
    verdicts = {(c.metric, c.runtime): c for c in slower.gate.checks}
    assert {runtime for _, runtime in verdicts} == {"onnxruntime"}
    assert verdicts["latency_vs_baseline", "onnxruntime"].verdict == "fail"
    with (
        np.load(run.path / "verify/logits.npz") as before,
        np.load(slower.path / "verify/logits.npz") as now,
    ):
        accuracies = [
            (archive["onnxruntime/student"].argmax(1) == archive["labels"]).mean()
            for archive in (before, now)
        ]
    drop = verdicts["accuracy_vs_baseline", "onnxruntime"].value
    assert drop == pytest.approx(accuracies[0] - accuracies[1])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.txt", b"", "should be an existing .onnx or .xml file"),
        ("model.onnx", b"not a model", "is not an ONNX model"),
        ("model.xml", b"<net/>", "its weights are missing"),
    ],
)
def test_a_baseline_that_is_no_model_is_refused(run, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        line(run.path, gate={"baseline": str(tmp_path / name), "budgets": []})


def test_a_baseline_for_other_inputs_is_refused(run, exported, tmp_path):
    import onnx

    model = onnx.load(run.path / "export/student.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 32
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(UsageError, match="cannot run it on the test samples"):
        line(run.path, gate={"baseline": str(tmp_path / "other.onnx"), "budgets": []})


@pytest.mark.slow
def test_an_undecided_latency_is_measured_again_and_that_is_kept(run):
    # An interval that nothing meets: where medians are equal to the tick of the clock it may be a point,
    # which decides.
    profile = {"launches": 1, "interval": 1e-9}
    line(run.path, "profile", profile=profile)
    student = next(m for m in run.profile.measurements
                   if m.role == "student" and m.runtime == "openvino")  # fmt: skip
    # Nothing can decide a budget that is exactly what was measured, on the first look.
    budget = {"metric": "latency_p50", "max": f"{student.latency.p50 * 1e9:.0f} ns"}
    gate = {"budgets": [budget | {"runtime": "openvino"}], "max_seconds": 1}
    line(run.path, profile=profile, gate=gate)
    (check,) = run.gate.checks
    assert "measured again" in check.text
    again = json.loads((run.path / "gate/local-openvino-f32.json").read_text())
    values = {m["latency"]["p50"] for m in again["measurements"] if m["role"] == "student"}
    assert values == {check.value}
    line(run.path, profile=profile, gate=gate | {"max_seconds": 0})
    (check,) = run.gate.checks
    assert (check.value, check.verdict) == (student.latency.p50, "inconclusive")


METRICS = """
import numpy as np

def top2(logits, labels):
    best = np.argsort(logits, axis=1)[:, -2:]
    return {"top2": (best == labels[:, None]).any(1).mean(), "calls": 1}

def broken(logits, labels):
    return {"x": labels[10**6]}

def text(logits, labels):
    return "good"

def leaves(logits, labels):
    raise SystemExit(0)

def shouts(logits, labels):
    raise ValueError("a\\n::error::pwned")

def undefined(logits, labels):
    return {"fine": 1.0, "x": float("nan")}

def strange(logits, labels):
    return {"a\\n::error::b": 1.0}

def none(logits, labels):
    return {}
"""


def test_a_metric_of_the_users_has_an_interval_and_a_drop(run, tmp_path):
    (tmp_path / "mine.py").write_text(METRICS)
    gate = {"metrics": f"{tmp_path}/mine.py:top2", "budgets": [
        {"metric": "user.top2", "min": 0.2}, {"metric": "user.top2_drop", "max": 0.9},
    ]}  # fmt: skip
    line(run.path, gate=gate)
    checks = {(c.metric, c.runtime): c for c in run.gate.checks}
    with np.load(run.path / "verify/logits.npz") as logits:
        order = np.argsort(logits["openvino/student"], axis=1)[:, -2:]
        expected = (order == logits["labels"][:, None]).any(1).mean()
    found = checks["user.top2", "openvino"]
    assert found.value == pytest.approx(expected)
    low, high = found.interval
    assert low < expected < high < low + 0.2
    assert run.exit_code == 0
    assert line(run.path, gate=gate)[1] == []
    (tmp_path / "mine.py").write_text(METRICS + "# another file")
    assert "gate" in line(run.path, gate=gate)[1]


@pytest.mark.parametrize(
    ("function", "metric", "message"),
    [
        ("top2", "user.f1", "gate.metrics gives: user.calls, user.calls_drop, user.top2"),
        ("broken", "user.x", "IndexError"),
        ("text", "user.x", "gave a str"),
        ("nothing", "user.x", "has no 'nothing'"),
        ("leaves", "user.x", "leaves failed on logits .*SystemExit: 0"),
        ("shouts", "user.x", "ValueError: a ::error::pwned"),
        ("undefined", "user.x", r"mine\.py:undefined gives user\.x = nan"),
        ("strange", "user.x", "the name 'a.+b' should be letters"),
        ("none", "user.x", "gate.metrics gives: nothing$"),
    ],
)
def test_a_metric_that_is_not_there_or_fails_is_one_clear_error(
    run, tmp_path, function, metric, message
):
    (tmp_path / "mine.py").write_text(METRICS)
    gate = {"metrics": f"{tmp_path}/mine.py:{function}", "budgets": [{"metric": metric, "min": 0}]}
    with pytest.raises(UsageError, match=message) as caught:
        line(run.path, gate=gate)
    assert "\n::" not in str(caught.value)


def test_a_value_that_is_undefined_and_that_no_budget_is_on_is_left_out(run, tmp_path):
    (tmp_path / "mine.py").write_text(METRICS)
    gate = {"metrics": f"{tmp_path}/mine.py:undefined",
            "budgets": [{"metric": "user.fine", "min": 1}]}  # fmt: skip
    line(run.path, gate=gate)
    assert run.exit_code == 0


def test_a_model_that_ends_the_program_while_it_trains_is_an_error(run, tmp_path):
    (tmp_path / "net.py").write_text(
        "import sys, torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, hidden): super().__init__(); self.f = torch.nn.Linear(64, 10)\n"
        "    def forward(self, x):\n"
        "        if self.training: sys.exit(0)\n"
        "        return self.f(x.flatten(1))\n"
    )
    with pytest.raises(StageError, match="stage distill called ended the program"):
        line(run.path, student={"model": f"{tmp_path}/net.py:Net"}, distill={"doctor": False})


def test_recall_has_a_floor_under_every_class_and_under_one(run):
    budgets = [
        {"metric": "class_recall", "min": "0 %"},
        {"metric": "class_recall", "label": "3", "min": "0 %"},
        {"metric": "agreement", "min": "0 %"},
    ]
    line(run.path, gate={"budgets": budgets})
    accuracy = next(p for p in run.verify.files if p.role == "student").accuracy
    recalls = [correct / total for correct, total in accuracy.per_class]
    every, third = (
        c for c in run.gate.checks if c.metric == "class_recall" and c.runtime == "onnxruntime"
    )
    assert every.value == min(recalls)
    assert third.value == recalls[3]
    assert third.interval[0] < recalls[3] < third.interval[1]
    with pytest.raises(UsageError, match=r"class 'three'(.|\n)*classes: 0, 1, 2"):
        line(
            run.path, gate={"budgets": [{"metric": "class_recall", "label": "three", "min": "1 %"}]}
        )
