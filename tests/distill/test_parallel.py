"""Two real processes, as torchrun starts them: one loss curve, one set of weights, one that writes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

pytestmark = pytest.mark.slow

# Dropout would draw other numbers, and batch normalisation see half of the batch.
CONFIG = """
data: {source: digits, limit: 400, augment: {crop: 1, views: 2}}
teacher: {model: "zoo:mlp", args: {hidden: [48], norm: false}, train: {epochs: 2}}
student: {model: "zoo:mlp", args: {hidden: [16], norm: false}}
distill:
  epochs: 3
  batch_size: 64
  doctor: false
  methods:  # two of them with layers of their own, which are to stay the same in all processes
    - kd: {temperature: 4}
    - fitnet: {tap: [penultimate, penultimate], weight: 10}
    - vid: {taps: [[penultimate, penultimate], ["1", "1"]], weight: 10}
"""


def start(folder, processes, *extra, config=CONFIG):
    folder.mkdir(exist_ok=True)
    (folder / "compress.yaml").write_text(config)
    python = [sys.executable]
    if processes > 1:
        python += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*python, "-m", "edgekd", "distill", "compress.yaml", "--out", "runs/a", *extra]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process):
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out, err


def results(folder):
    student = folder / "runs/a/student"
    history = json.loads((student / "history.json").read_text())
    return history["epochs"], load_file(student / "model.safetensors")


def errors(err):
    """What edgekd says in all processes; torchrun adds a page of its own."""
    return [line for line in err.splitlines() if line.startswith("error:")]


def process_of(torchrun, rank):
    children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
    said = f"RANK={rank}\0".encode()
    (found,) = [c for c in children if b"\0" + said in Path(f"/proc/{c}/environ").read_bytes()]
    return int(found)


def test_two_processes_give_the_loss_curve_and_the_weights_of_one_and_only_one_writes(tmp_path):
    finish(start(tmp_path / "one", 1))
    _, err = finish(start(tmp_path / "two", 2))
    (one, single), (two, double) = results(tmp_path / "one"), results(tmp_path / "two")
    for a, b in zip(one, two, strict=True):
        assert a["losses"] == pytest.approx(b["losses"], rel=1e-4)
        assert a["validation_loss"] == pytest.approx(b["validation_loss"], rel=5e-3)
    for name, weights in single.items():
        assert np.allclose(weights, double[name], atol=5e-3), name
    assert err.count("student accuracy") == 1
    assert sorted(
        p.name for p in (tmp_path / "two/runs/a").iterdir() if p.name[0] != "."
    ) == sorted(p.name for p in (tmp_path / "one/runs/a").iterdir() if p.name[0] != ".")


def test_stopped_together_they_go_on_to_the_same_weights(tmp_path):
    # With batch normalisation: each sees its half, the statistics are averaged.
    config = CONFIG.replace("norm: false", "norm: true").replace("epochs: 3", "epochs: 50")
    config = config.replace("weight: 10}", "weight: 0.1}")  # so long it would diverge
    finish(start(tmp_path / "whole", 2, config=config))
    stopped = start(tmp_path / "stopped", 2, config=config)
    partial = tmp_path / "stopped/runs/a/.partial"
    while not list(partial.glob("distill-*/checkpoint.pt")):
        assert stopped.poll() is None, stopped.communicate()
        time.sleep(0.05)
    stopped.send_signal(signal.SIGTERM)
    _, err = stopped.communicate(timeout=120)
    assert stopped.returncode != 0
    assert errors(err) == ["error: stopped while training the student"]
    # And one of them killed, by the system that has no memory left.
    (checkpoint,) = partial.glob("distill-*/checkpoint.pt")
    before = checkpoint.stat().st_mtime_ns
    killed = start(tmp_path / "stopped", 2, config=config)
    while checkpoint.stat().st_mtime_ns == before:
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.02)
    os.kill(process_of(killed, rank=1), signal.SIGKILL)
    _, err = killed.communicate(timeout=120)
    assert "going on from epoch" in err
    assert len(errors(err)) == 1
    assert "another process of this training is gone" in errors(err)[0]
    _, err = finish(start(tmp_path / "stopped", 2, config=config))
    assert "going on from epoch" in err
    (losses, whole), (resumed, weights) = results(tmp_path / "whole"), results(tmp_path / "stopped")
    assert all(np.array_equal(whole[name], weights[name]) for name in whole)
    assert [epoch["losses"] for epoch in losses] == [epoch["losses"] for epoch in resumed]


def test_a_mistake_in_one_process_is_told_once_and_is_no_crash_of_the_other(tmp_path):
    (tmp_path / "nets.py").write_text(
        "import os\nfrom torch import nn\n"
        "def net(hidden=8):\n"
        "    if os.environ['RANK'] == '1':\n"
        "        raise ValueError('a machine without what the other has')\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))\n"
    )
    config = CONFIG.replace('"zoo:mlp", args: {hidden: [16], norm: false}', "nets.py:net")
    process = start(tmp_path, 2, config=config)
    _, err = process.communicate(timeout=120)
    other, mistake = sorted(errors(err), key=lambda line: "nets.py" in line)
    assert "a machine without what the other has" in mistake
    assert other == "error: process 0 stops, as process 1 did: see its message, here or in its log"
    assert re.findall(r"exitcode  : (\d+)", err) == ["2", "2"]
