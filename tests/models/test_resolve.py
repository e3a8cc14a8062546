"""Users' factories: modules, files, what they are given, and every way they go wrong."""

import sys

import pytest
import torch

from edgekd.errors import UsageError
from edgekd.models.resolve import build, check, fingerprint

NET = """
from torch import nn
from helper_of_user import WIDTH

def net(num_classes, in_channels, width=WIDTH):
    return nn.Sequential(nn.Conv2d(in_channels, width, 3), nn.Flatten(), nn.LazyLinear(num_classes))

def plain(): return nn.Identity()
def not_a_module(): return 3
def fails(): raise RuntimeError("no memory of this")
def leaves(): raise SystemExit(4)
def pair(num_classes): return Pair()
class Pair(nn.Module):
    def forward(self, x): return x, x
"""


@pytest.fixture
def base(tmp_path):
    (tmp_path / "nets.py").write_text(NET)
    (tmp_path / "helper_of_user.py").write_text("WIDTH = 4\n")
    package = tmp_path / "pkg_of_user"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "deep.py").write_text("from torch.nn import Flatten\ndef net(): return Flatten()\n")
    yield tmp_path
    for name in ("helper_of_user", "nets", "pkg_of_user", "pkg_of_user.deep"):
        sys.modules.pop(name, None)


def make(model, base, **args):
    return build(
        model, args, input_shape=(1, 8, 8), classes=5, seed=0, base=base, where="student.model"
    )


@pytest.mark.parametrize("model", ["nets.py:net", "./nets.py:net", "nets:net"])
def test_a_factory_gets_classes_and_channels_and_may_import_its_neighbours(base, model):
    path = sys.path[:]
    module = make(model, base)
    assert module(torch.zeros(2, 1, 8, 8)).shape == (2, 5)
    assert sys.path == path


def test_args_are_passed_and_win_over_what_edgekd_offers(base):
    assert make("nets.py:net", base, width=7, num_classes=3)(torch.zeros(1, 1, 8, 8)).shape == (
        1,
        3,
    )


def test_a_module_in_a_package(base):
    assert isinstance(make("pkg_of_user.deep:net", base), torch.nn.Flatten)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("resnet20", "should be zoo:NAME"),
        ("zoo:", "should be zoo:NAME"),
        ("no_such_package_here:net", "no module no_such_package_here"),
        ("../../etc/passwd:net", "cannot read"),
        ("missing.py:net", "no such file"),
        ("nets.py:nett", "did you mean 'net'"),
        ("nets.py:not_a_module", "gives a int"),
        ("nets.py:fails", "no memory of this"),
        ("nets.py:leaves", "SystemExit"),
    ],
)
def test_what_cannot_be_found_or_built_is_one_clear_error(base, model, message):
    with pytest.raises(UsageError) as caught:
        make(model, base)
    assert message in str(caught.value)
    assert "student.model" in str(caught.value)


def test_an_exception_in_the_users_file_is_located(base):
    (base / "bad.py").write_text("import torch\n\n1 / 0\n")
    with pytest.raises(UsageError, match=r"bad\.py:3: importing .* ZeroDivisionError"):
        make("bad.py:net", base)
    (base / "bad.py").write_text("def net(:\n")
    with pytest.raises(UsageError, match=r"bad\.py:1: .*SyntaxError"):
        make("bad.py:net", base)
    (base / "bad.py").write_text("def net():\n    x = {}\n    return x['a']\n")
    with pytest.raises(UsageError, match=r"bad\.py:3"):
        make("bad.py:net", base)


def test_a_wrong_argument_lists_the_right_ones(base):
    with pytest.raises(
        UsageError, match=r"'hight'(.|\n)*it takes: num_classes, in_channels, width"
    ):
        make("nets.py:net", base, hight=3)


def test_a_file_hidden_by_another_module_of_its_name_says_so(base):
    (base / "json.py").write_text("def net(): pass\n")
    with pytest.raises(UsageError, match=r"another module is called json(.|\n)*json\.py:net"):
        make("json:net", base)


class TestCheck:
    def run(self, module, classes=5):
        check(module, role="student", input_shape=(1, 8, 8), outputs=(classes,))

    def test_another_number_of_classes_names_the_role_and_both_numbers(self, base):
        module = make("nets.py:net", base, num_classes=7)
        with pytest.raises(UsageError, match=r"student: gives logits of shape \(n, 7\)") as caught:
            self.run(module)
        assert "has 5 classes" in str(caught.value)

    def test_more_than_logits_and_wrong_inputs(self, base):
        with pytest.raises(UsageError, match="gives a tuple"):
            self.run(make("nets.py:pair", base))
        with pytest.raises(UsageError, match="cannot take inputs of shape"):
            self.run(torch.nn.Linear(3, 5))

    def test_it_leaves_mode_and_buffers_alone(self):
        module = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.BatchNorm1d(64), torch.nn.Linear(64, 5)
        )
        before = module[1].running_mean.clone() + 0
        self.run(module.train())
        assert module.training
        assert torch.equal(module[1].running_mean, before)


class TestFingerprint:
    def test_it_follows_the_file(self, base):
        before = {m: fingerprint(m, base) for m in ("nets:net", "nets.py:net", "zoo:mlp")}
        assert before["nets:net"] == before["nets.py:net"]
        (base / "nets.py").write_text(NET + "\n# changed\n")
        assert fingerprint("nets:net", base) != before["nets:net"]
        assert fingerprint("zoo:mlp", base) == before["zoo:mlp"]

    def test_it_imports_nothing(self, base):
        (base / "side.py").write_text("raise SystemExit\n")
        assert fingerprint("side:net", base)
        assert "side" not in sys.modules
