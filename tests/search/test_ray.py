"""On a real cluster of this machine, one of whose workers is killed in the middle of a trial."""

import os
import signal
import subprocess
import threading

import numpy as np
import pytest

from edgekd.errors import UsageError
from tests.search.conftest import TINY, Lab
from tests.search.test_search import LONG, until

# Both trials are to be on their way at once, and the second worker may start seconds after the first.
LONGER = LONG | {"epochs": 250}


def ray_workers():
    """Processes of the cluster that run a trial; Ray names them after the task."""
    every = subprocess.check_output(["ps", "-eo", "pid,args"], text=True).splitlines()[1:]
    return [int(line.split(None, 1)[0]) for line in every if "ray::mlp" in line]


@pytest.fixture
def cluster():
    ray = pytest.importorskip("ray")
    from edgekd.search.engines.ray import _ROOT

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray's workers give way to all else, and here other tests are beside them.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error",
        runtime_env={"env_vars": {"PYTHONPATH": str(_ROOT)}},
    )  # fmt: skip
    yield ray
    ray.shutdown()


@pytest.mark.slow
def test_a_worker_that_is_killed_in_mid_trial_loses_nothing(cluster, tmp_path):
    search = {**TINY["search"], "candidates": 2, "trials": 2, "rungs": 1, "prune": []}
    distill = {**TINY["distill"], **LONGER}
    lab = Lab(tmp_path, distill=distill, search={**search, "engine": "ray://", "jobs": 2})
    killed: list[int] = []

    def kill():
        until(lambda: len(list(lab.out.glob("trials/*/checkpoint.pt"))) == 2, 200)
        victim = until(ray_workers)[0]
        os.kill(victim, signal.SIGKILL)
        killed.append(victim)

    thread = threading.Thread(target=kill)
    thread.start()
    report = lab.search()
    thread.join()
    assert killed
    assert report.found
    assert all(trial.error is None and len(trial.rungs) == 1 for trial in report.trials)

    straight = Lab(tmp_path / "straight", distill=distill, search=search)
    straight.base.mkdir()
    assert straight.search().points == report.points or _same(straight, lab)


def _same(*labs):
    """Whatever the machine's latencies were: the very same weights, trial by trial."""
    found = []
    for lab in labs:
        trials = sorted(lab.out.glob("trials/*"))
        found.append({trial.name: _weights(trial) for trial in trials})
    assert found[0].keys() == found[1].keys()
    return all(
        np.array_equal(found[0][trial][k], found[1][trial][k])
        for trial in found[0]
        for k in found[0][trial]
    )


def _weights(trial):
    import torch

    state = torch.load(trial / "checkpoint.pt", weights_only=True)["state"]
    return {name: value.numpy() for name, value in state["best_weights"].items()}


def test_a_cluster_that_is_not_there_is_one_error(tmp_path):
    pytest.importorskip("ray")
    lab = Lab(tmp_path, search={**TINY["search"], "engine": "ray://127.0.0.1:1"})
    with pytest.raises(UsageError, match=r"no Ray cluster at 127\.0\.0\.1:1") as caught:
        lab.search()
    assert "ray start --head" in caught.value.fix
    # Before the teacher is trained.
    assert not lab.out.exists()
