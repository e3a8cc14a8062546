"""`edgekd bench` on files: what it prints, and what it refuses."""

import json

import pytest

from edgekd.cli import main


def bench(*arguments):
    with pytest.raises(SystemExit) as exit_:
        main(["bench", *map(str, arguments)])
    return exit_.value.code


def test_two_files_are_teacher_and_student_of_this_machine(exported, capsys):
    files = [exported.folder / f"{role}.onnx" for role in ("teacher", "student")]
    assert bench(*files, "--target", "local", "--max-seconds", 0.1, "--json", "-q") == 0
    report = json.loads(capsys.readouterr().out)
    found = {(m["role"], m["runtime"], m["path"]) for m in report["measurements"]}
    assert found == {(f.stem, "onnxruntime", str(f.resolve())) for f in files}
    assert len(report["comparisons"]) == 1


@pytest.mark.parametrize(("arguments", "reason"), [
    (["{0}/none.onnx", "--target", "local"], "should be an existing .onnx or .xml file"),
    (["{0}", "--target", "local"], "not a run folder"),
    (["{0}/student.onnx"] * 3 + ["--target", "local"], "give a run folder"),
    (["{0}/student.onnx", "--target", "locl"], "did you mean 'local'"),
    (["{0}/student.onnx", "--target", "local", "--host", "127.0.0.1"], "transport: browser"),
    (["{0}/student.onnx", "--target", "browser", "--host", "example.com"], "an IP address"),
    (["{0}/student.onnx", "--target", "browser", "--port", "65536"], "--port"),
    (["{0}/student.onnx", "--target", "browser", "--key", "k.pem"], "both certificate and key"),
    (["{0}/student.xml", "--target", "browser"], "open none of the exported formats"),
])  # fmt: skip
def test_what_cannot_be_meant_is_one_error(exported, capsys, arguments, reason):
    assert bench(*(a.format(exported.folder) for a in arguments)) == 2
    said = capsys.readouterr()
    assert reason in said.err
    assert said.out == ""
