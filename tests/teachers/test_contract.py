"""What a teacher cannot give is refused when the configuration is read."""

import subprocess
import sys

import pytest

from edgekd.config.load import load_config
from edgekd.distill.method import METHODS
from edgekd.errors import UsageError
from edgekd.teachers.teacher import TEACHERS, kind_of


def refused(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        load_config(path)
    return str(error.value)


@pytest.mark.parametrize("model", ["onnx:t.onnx", "records:t.csv"])
def test_features_of_a_teacher_that_hides_them_are_refused_naming_what_works(tmp_path, model):
    text = refused(tmp_path, f"teacher: {{model: '{model}'}}\ndistill:\n  methods: [kd, at]\n")
    assert "c.yaml:3: distill.methods: at needs the teacher's features" in text
    assert "methods that work with it: " in text
    named = text.rpartition("work with it: ")[2].split(", ")
    works = {n for n in METHODS.names() if "features" not in METHODS.get(n).needs}
    assert set(named) == works - {"cwd"}  # of maps
    assert "kd" in named


def test_a_budget_on_the_teachers_file_is_refused_where_there_is_none(tmp_path):
    text = refused(
        tmp_path,
        "teacher: {model: 'records:t.csv'}\ngate:\n  budgets:\n    - {metric: speedup, min: 3 x}\n",
    )
    assert "c.yaml:4: gate.budgets.0: speedup compares with the teacher's file" in text


def test_args_are_checked_against_the_kind(tmp_path):
    text = refused(tmp_path, "teacher: {model: 'onnx:t.onnx', args: {runtme: openvino}}\n")
    assert "args.runtme: unknown key; did you mean 'runtime'?" in text
    text = refused(tmp_path, "teacher: {model: 'onnx:t.onnx', weights: w.safetensors}\n")
    assert "weights are of PyTorch networks" in text


def test_networks_are_white_box_and_files_are_not():
    assert kind_of("zoo:mlp").transparency == "white-box"
    assert kind_of("my.module:factory").transparency == "white-box"
    assert kind_of("nets.py:factory").transparency == "white-box"
    assert kind_of("onnx:a/b.onnx").transparency == "gray-box"
    for name in TEACHERS.names():
        kind = TEACHERS.get(name)
        assert ("features" in kind.provides) == (kind.transparency == "white-box"), name


def test_reading_a_configuration_loads_no_framework():
    code = (
        "import sys, edgekd.config.schema as s; s.Config(teacher={'model': 'onnx:a.onnx'});"
        "print([m for m in ('torch', 'numpy', 'onnx', 'pyarrow', 'urllib3') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
