"""`distill.methods: auto`: what is suggested fits the data, and what is given is never replaced."""

from types import SimpleNamespace

import pytest

from edgekd.config.schema import Config, Distill
from edgekd.distill.method import METHODS
from edgekd.distill.suggest import MANY_CLASSES, suggested
from edgekd.tasks.check import fits


def data(task="classification", classes=10):
    return SimpleNamespace(task=task, classes=tuple(map(str, range(classes))))


def names(found):
    return [method.name for method in found[1]]


def test_few_classes_are_distilled_by_kd_and_many_by_dist():
    assert names(suggested(data(classes=MANY_CLASSES - 1))) == ["kd"]
    assert suggested(data(classes=10)) == (0.1, (METHODS.get("kd")(),))
    assert suggested(data(classes=100)) == (1.0, (METHODS.get("dist")(),))


@pytest.mark.parametrize("task", ["regression", "quantile:0.5", "segmentation"])
def test_other_tasks_get_methods_that_are_for_them(task):
    for method in suggested(data(task))[1]:
        assert fits(type(method), task.partition(":")[0])


def test_what_is_suggested_asks_no_more_of_a_teacher_than_what_was_checked():
    checked = Distill().methods.entries[0].needs
    for task in ("classification", "regression", "segmentation"):
        for classes in (2, 100):
            assert all(
                m.needs <= checked and not m.labelled for m in suggested(data(task, classes))[1]
            )


def test_auto_is_the_default_and_is_written_down_as_such():
    assert Config().distill.methods.auto
    assert Config().model_dump()["distill"]["methods"] == "auto"
    again = Distill.model_validate(Distill().model_dump())
    assert again == Distill()
    given = Distill(methods=["kd"])
    assert not given.methods.auto
    assert given.model_dump()["methods"] != "auto"


def test_anything_else_that_is_no_list_is_refused():
    with pytest.raises(ValueError, match="should be auto, or a list"):
        Distill(methods="kd")
