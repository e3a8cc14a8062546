"""What stage distill would stumble over is told, with its key, before a teacher is trained."""

import textwrap

import pytest

from edgekd import api
from edgekd.distill.methods.fitnet import FitNet
from edgekd.errors import UsageError
from edgekd.pipeline.line import run_line
from edgekd.progress import Silent

MLP = {"model": "zoo:mlp", "args": {"hidden": [12]}}
CNN = {"model": "zoo:dscnn", "args": {"width": 4, "depth": 2}}


def problem(run):
    """What the run says; it has trained nothing by then."""
    with pytest.raises(UsageError) as caught:
        run.distill()
    assert not (run.path / "teacher").exists()
    return str(caught.value)


def methods(*entries):
    return {"methods": list(entries)}


@pytest.mark.parametrize(
    ("entry", "key", "text"),
    [
        ({"rkd": {"tap": ["nothing", "penultimate"]}}, "rkd", "teacher: no tap 'nothing' in"),
        ({"rkd": {"tap": ["penultimate", "nothing"]}}, "rkd", "student: no tap 'nothing' in"),
        ({"at": {"tap": ["penultimate", "3"]}}, "at", "at needs feature maps"),
        ({"nst": {"tap": ["penultimate", "3"]}}, "nst", "nst needs feature maps"),
        (
            {"fitnet": {"tap": ["penultimate", "3"]}},
            "fitnet",
            "features of shape (4, 4, 4, 4) cannot be mapped to",
        ),
        ("at", "at", "at needs feature maps, and one of the models has none"),
        (
            "tinybert",
            "tinybert",
            "tinybert is for transformers of two blocks or more, which the teacher",
        ),
        (
            {"tinybert": {"tap": ["penultimate", "3"]}},
            "tinybert",
            "tinybert compares place by place",
        ),
        ({"fitnet": {"tap": ["penultimate:attention", "3"]}}, "fitnet", "teacher: no tap"),
        ({"sp": {"tap": ["penultimate", "3:output.3"]}}, "sp", "student: tap"),
    ],
)
def test_taps_that_do_not_fit(lab, entry, key, text):
    said = problem(lab(student=CNN, distill=methods("kd", entry)))
    assert said.startswith(f"distill.methods.1.{key}: {text}")


def test_a_loss_that_fails_on_these_features_is_named_with_their_shapes(lab, monkeypatch):
    def broken(self, r, student, teacher, labels):
        return student.logits @ teacher.logits

    monkeypatch.setattr(FitNet, "hint", broken)
    pair = {"tap": ["penultimate", "penultimate"]}
    said = problem(lab(distill=methods({"fitnet": pair}, "kd")))
    assert said.startswith(
        "distill.methods.0.fitnet: cannot be computed from what passes its taps: 4:input (32, 48) → "
        "4:input (32, 12) (RuntimeError: mat1 and mat2"
    )


@pytest.mark.parametrize(
    ("scheme", "text"),
    [
        (
            {"assistant": {"chain": ["zoo:mlp", "zoo:nothing"]}},
            "distill.scheme.assistant.chain.1.model",
        ),
        ({"ensemble": {"members": ["zoo:nothing"]}}, "distill.scheme.ensemble.members.0.model"),
        ({"online": {"peers": ["zoo:nothing"]}}, "distill.scheme.online.peers.0.model"),
        (
            {"ensemble": {"members": [{"model": "zoo:mlp", "args": {"hidden": "x"}}]}},
            "distill.scheme.ensemble.members.0",
        ),
        ({"specialists": {"classes": 10}}, "distill.scheme.specialists.classes"),
        ("byot", "distill.scheme: byot needs a network of at least two stages"),
    ],
)
def test_networks_and_settings_of_a_scheme(lab, scheme, text):
    assert problem(lab(distill={"scheme": scheme})).startswith(text)


def test_taps_are_tried_between_all_that_teach_each_other(lab):
    chain = {"assistant": {"chain": [CNN]}}
    pair = {"at": {"tap": ["12", "12"]}}
    said = problem(lab(student=CNN, teacher={**MLP, "train": {"epochs": 1}},
                       distill={"scheme": chain, **methods(pair)}))  # fmt: skip
    assert "teacher: no tap '12'" in said
    said = problem(lab("end", student=MLP, teacher={**CNN, "train": {"epochs": 1}},
                       distill={"scheme": chain, **methods(pair)}))  # fmt: skip
    assert "student: no tap '12'" in said
    again = {"born_again": {"first": "labels", "generations": 2}}
    said = problem(lab("again", student=MLP, distill={"scheme": again, **methods(pair)}))
    assert "no tap '12' in" in said


NETS = """
    import torch
    from torch import nn

    class Net(nn.Linear):
        def __init__(self):
            super().__init__(64, 10)

        def forward(self, x):
            return super().forward(x.flatten(1))

    class Detached(Net):
        def forward(self, x):
            return super().forward(x).detach()

    class Small(Net):
        def forward(self, x):
            if self.training and len(x) > 8:
                raise ValueError("too many")
            return super().forward(x)

    class Pair(Net):
        def forward(self, x):
            return (super().forward(x), x) if self.training else super().forward(x)

    class Double(Net):
        def forward(self, x):
            return super().forward(x).double()

    class Alone(Net):
        def __deepcopy__(self, memo):
            raise TypeError("there is one")

    def scripted():
        return torch.jit.trace(Net(), torch.zeros(2, 1, 8, 8))

    def lazy():
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))
"""


@pytest.fixture
def nets(tmp_path):
    path = tmp_path / "nets.py"
    path.write_text(textwrap.dedent(NETS))
    return lambda name: {"model": f"{path}:{name}", "args": {}}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Detached", "the network's outputs have no gradient"),
        ("Small", "fails in training, on inputs of shape (32, 1, 8, 8): ValueError: too many"),
        ("Pair", "gives a tuple in training"),
        ("Double", "has weights or outputs of float64"),
        ("Alone", "TypeError: there is one"),
        ("scripted", "gives a module of TorchScript"),
    ],
)
def test_networks_that_cannot_be_trained(lab, nets, name, text):
    said = problem(lab(student=nets(name)))
    assert said.startswith("student")
    assert text in said
    assert text in problem(lab("taught", teacher={**nets(name), "train": {"epochs": 1}}))
    chain = {"assistant": {"chain": [nets(name)]}}
    said = problem(lab("chain", distill={"scheme": chain}))
    assert said.startswith("distill.scheme.assistant.chain.0")
    assert text in said


def test_networks_that_can(lab, nets):
    lab("small", student=nets("Small"), distill={"batch_size": 8, "epochs": 1}).distill()
    lazy = {**nets("lazy"), "train": {"epochs": 1}}
    lab("lazy", student=nets("lazy"), teacher=lazy, distill={"epochs": 1}).distill()


def test_weights_and_starts_that_do_not_fit(lab, tmp_path):
    lab("other").distill()
    wrong = str(tmp_path / "runs/other/student/model.safetensors")
    members = [{"model": "zoo:mlp", "args": {"hidden": [48]}, "weights": wrong}]
    taught = {"train": {"epochs": 1}}
    said = problem(lab(teacher=taught, distill={"scheme": {"ensemble": {"members": members}}}))
    assert wrong in said
    start = {"start": {"embeddings": "copy"}}
    said = problem(lab(teacher=taught, student=start, distill={"methods": [], "alpha": 1.0}))
    assert said.startswith("student.start: is for students of zoo:bert")


def test_what_a_transfer_set_or_a_store_lacks_for_the_methods(lab):
    crd = {"crd": {"negatives": 8, "dim": 4}}
    said = problem(lab(distill={"transfer": {"only": ["3"]}, "methods": [crd]}))
    assert said.startswith("distill.methods.0.crd: crd needs samples of two classes")


def test_a_device_that_is_not_there(lab):
    cuda = {"compute": {"device": "cuda"}}
    assert problem(lab(distill=cuda)).startswith("distill.compute.device: PyTorch finds no CUDA")
    taught = lab("t", teacher={"train": {"epochs": 1, **cuda}})
    assert problem(taught).startswith("teacher.train.compute.device")


def test_a_store_that_cannot_be_written(lab, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/.knowledge").write_text("not a folder")
    assert "cannot be written to" in problem(lab())
    lab("without", distill={"knowledge": {"store": False}}).distill()


def test_nothing_is_tried_of_a_teacher_alone(tmp_path):
    value = {"teacher": {**MLP, "train": {"epochs": 1}}, "history": None,
             "distill": methods({"rkd": {"tap": ["nothing", "nothing"]}})}  # fmt: skip
    config, base = api.resolve(value)
    run_line(config, base=base, out=tmp_path / "run", until="teacher", progress=Silent())
    assert (tmp_path / "run/teacher/model.safetensors").exists()
    with pytest.raises(UsageError, match="no tap 'nothing'"):
        run_line(config, base=base, out=tmp_path / "run", until="distill", progress=Silent())
