"""Ensembles, assistants, born-again generations: who learns from whom, and what a crash leaves behind."""

import math

import numpy as np
import pytest
import torch

from edgekd.config.schema import Config
from edgekd.distill.method import Knowledge
from edgekd.teachers.ensemble import Ensemble, mean_logits
from edgekd.teachers.teacher import Teacher
from tests.distill.schemes.conftest import TINY, StopAfter, refused, same
from tests.heard import Heard


def asks(*networks, combine=lambda answers: answers[0]):
    def knowledge(inputs, indices, view):
        with torch.no_grad():
            return Knowledge(combine([network(inputs) for network in networks]))

    return knowledge


def draw(*shape, seed=0):
    return 3 * torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def softmax(row, T):
    e = [math.exp(x / T) for x in row]
    return [x / sum(e) for x in e]


class TestMean:
    @pytest.mark.parametrize("T", [1.0, 4.0])
    def test_arithmetic_is_the_weighted_mean_of_the_members_soft_targets(self, T):
        z, w = [draw(4, 5, seed=s) for s in range(3)], [0.5, 0.2, 0.3]
        found = (mean_logits(z, w, "arithmetic", T) / T).softmax(1)
        for i in range(4):
            soft = [softmax(member[i].tolist(), T) for member in z]
            expected = [sum(a * s[c] for a, s in zip(w, soft, strict=True)) for c in range(5)]
            assert found[i].tolist() == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize("T", [1.0, 4.0])
    def test_geometric_is_the_normalised_product_at_every_temperature(self, T):
        z, w = [draw(4, 5, seed=s) for s in range(2)], [0.75, 0.25]
        found = (mean_logits(z, w, "geometric") / T).softmax(1)
        for i in range(4):
            soft = [softmax(member[i].tolist(), T) for member in z]
            product = [math.prod(s[c] ** a for a, s in zip(w, soft, strict=True)) for c in range(5)]
            expected = [p / sum(product) for p in product]
            assert found[i].tolist() == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize("T", [1.0, 4.0])
    def test_a_member_that_only_gives_labels_is_certain_of_them(self, T):
        class Says(Teacher):
            def __init__(self, logits, provides):
                self.logits, self.provides = logits, frozenset(provides)

            def knowledge(self, inputs, indices, view):
                return Knowledge(self.logits)

        z = draw(4, 5)
        labels = torch.eye(5, dtype=z.dtype)[:4]
        members = [Says(labels, {"labels"}), Says(z, {"logits", "labels"})]
        found = Ensemble(members, temperature=T).knowledge(None, None, 0).logits
        expected = 0.5 * labels + 0.5 * (z / T).softmax(1)
        torch.testing.assert_close((found / T).softmax(1), expected, atol=1e-6, rtol=0)

    def test_a_member_of_weight_zero_does_not_count(self):
        z = [draw(4, 5, seed=s) for s in range(2)]
        for mean in ("arithmetic", "geometric"):
            found = mean_logits(z, [0.0, 1.0], mean)
            torch.testing.assert_close(found.softmax(1), z[1].softmax(1))

    def test_weights_are_divided_by_their_sum(self):
        assert Ensemble([Teacher(), Teacher()], weights=[1, 3]).weights == (0.25, 0.75)

    def test_it_knows_what_every_member_knows_and_sees_views_if_all_do(self):
        class Half(Teacher):
            sees_views = False

            def __init__(self, parity):
                self.parity, self.prepared = parity, 0

            def known(self, indices):
                return indices[indices % self.parity == 0]

            def prepare(self, context, views, *, leads=True):
                self.prepared += 1

        members = [Half(2), Half(3)]
        ensemble = Ensemble([Teacher(), *members])
        ensemble.prepare(None, None)
        assert ensemble.known(np.arange(13)).tolist() == [0, 6, 12]
        assert not ensemble.sees_views
        assert [m.prepared for m in members] == [1, 1]
        assert Ensemble([Teacher(), Teacher()]).sees_views


@pytest.mark.parametrize(("given", "T"), [({}, 4), ({"temperature": 1.0}, 1)])
def test_the_ensembles_student_learns_from_the_mean_of_teacher_and_members(lab, tmp_path, given, T):
    members = [{"model": "zoo:mlp"}, "zoo:resnet8"]
    run = lab(distill={"scheme": {"ensemble": {"members": members, **given}}}).distill()
    members = [run.network("teacher"), *(run.network(f"student/members/{k}") for k in (1, 2))]
    assert type(members[2]) is not type(members[1])

    def mean_at_temperature(answers):
        return T * torch.stack([(z / T).softmax(1) for z in answers]).mean(0).log()

    teacher = asks(*members, combine=mean_at_temperature)
    expected = run.by_hand(tmp_path, teacher)
    for a, b in zip(expected.parameters(), run.network().parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert [m.name for m in run.report.models] == ["member 1", "member 2", "ensemble", "student"]


def test_weights_and_mean_of_the_ensemble_are_those_that_are_given(lab):
    given = {"members": ["zoo:mlp"], "mean": "geometric", "weights": [3.0, 1.0]}
    run = lab(distill={"scheme": {"ensemble": given}}).distill()
    inputs = run.dataset.tensor(run.dataset.test)
    with torch.no_grad():
        z, w = (run.network(folder)(inputs) for folder in ("teacher", "student/members/1"))
    mixed = 0.75 * (z / 4).log_softmax(1) + 0.25 * (w / 4).log_softmax(1)
    labels = torch.from_numpy(run.dataset.labels)[run.dataset.test]
    ensemble = next(m for m in run.report.models if m.name == "ensemble")
    assert ensemble.test.correct == int((mixed.argmax(1) == labels).sum())
    # What would come out without either is something else.
    assert not torch.equal(mixed.argmax(1), (z + w).argmax(1))


def test_members_of_the_teachers_architecture_start_elsewhere(lab):
    run = lab(distill={"scheme": {"ensemble": {"members": 1, "mean": "geometric"}}}).distill()
    a, b = run.network("teacher"), run.network("student/members/1")
    assert [p.shape for p in a.parameters()] == [p.shape for p in b.parameters()]
    assert not same(a, b)


def test_a_member_may_bring_its_weights(lab):
    first = lab("first").distill()
    given = {"model": "zoo:mlp", "args": {"hidden": [48]},
             "weights": str(first.path / "teacher/model.safetensors")}  # fmt: skip
    run = lab("second", distill={"scheme": {"ensemble": {"members": [given]}}}).distill()
    assert same(run.network("student/members/1"), first.network("teacher"))


def test_a_chain_of_assistants_hands_down_from_one_to_the_next(lab, tmp_path):
    chain = [{"model": "zoo:mlp", "args": {"hidden": [32]}},
             {"model": "zoo:mlp", "args": {"hidden": [20]}}]  # fmt: skip
    run = lab(distill={"scheme": {"assistant": {"chain": chain}}}).distill()
    networks = [run.network(f) for f in ("teacher", "student/assistants/1", "student/assistants/2")]
    assert [n[1].out_features for n in networks] == [48, 32, 20]
    assert same(run.by_hand(tmp_path, asks(networks[2])), run.network())


def test_generation_k_learns_from_generation_k_minus_one(lab, tmp_path):
    run = lab(distill={"scheme": {"born_again": {"generations": 3}}}).distill()
    teacher, one, two = (
        run.network(f) for f in ("teacher", "student/generations/1", "student/generations/2")
    )
    assert same(run.by_hand(tmp_path / "1", asks(teacher)), one)
    assert same(run.by_hand(tmp_path / "2", asks(one), seed=1), two)
    assert same(run.by_hand(tmp_path / "3", asks(two), seed=2), run.network())


def test_the_ensemble_of_generations_may_teach_the_student(lab, tmp_path):
    run = lab(distill={"scheme": {"born_again": {"generations": 2, "ensemble": True}}}).distill()
    generations = [run.network(f"student/generations/{k}") for k in (1, 2)]

    def mean_at_four(answers):
        return 4 * torch.stack([(z / 4).softmax(1) for z in answers]).mean(0).log()

    expected = run.by_hand(tmp_path, asks(*generations, combine=mean_at_four), seed=2)
    for a, b in zip(expected.parameters(), run.network().parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    ensemble = run.report.models[2]
    assert ensemble.name == "ensemble of the generations"
    labels = torch.from_numpy(run.dataset.labels)[run.dataset.test]
    inputs = run.dataset.tensor(run.dataset.test)
    with torch.no_grad():
        answers = mean_at_four([g(inputs) for g in generations]).argmax(1)
    assert ensemble.test.correct == int((answers == labels).sum())


def test_a_refinery_labels_the_very_view_that_is_trained_on_and_nothing_else(lab, tmp_path):
    run = lab(
        data={"limit": 300, "augment": {"crop": 1, "views": 2}},
        distill={"scheme": {"label_refinery": {"generations": 2}}},
    ).distill()
    assert run.config.distill.alpha == 0
    first = run.network("student/generations/1")
    views = []

    def refinery(inputs, indices, view):
        views.append(view)
        return asks(first)(inputs, indices, view)

    assert same(run.by_hand(tmp_path, refinery, seed=1), run.network())
    assert set(views) == {0, 1}


def test_the_student_of_a_scheme_is_a_plain_network_without_its_teachers(lab):
    run = lab(distill={"scheme": {"ensemble": {"members": 1}}}).distill()
    plain = lab("plain").distill()
    from safetensors.torch import load_file

    a, b = (load_file(r.path / "student/model.safetensors") for r in (run, plain))
    assert {k: v.shape for k, v in a.items()} == {k: v.shape for k, v in b.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "scheme", [{"born_again": {"generations": 2}}, {"assistant": {"chain": ["zoo:mlp"]}}]
)
def test_killed_anywhere_it_goes_on_to_the_same_student_and_trains_nothing_twice(lab, scheme):
    whole = lab("whole", distill={"scheme": scheme}).distill()
    for steps in (3, 15, 22, 29):
        # In a folder of its own, where no neighbour's student can be borrowed.
        cut = lab(f"{steps}/cut", distill={"scheme": scheme, "checkpoint_every": 0.0})
        with pytest.raises(RuntimeError, match="power cut"):
            cut.distill(StopAfter(steps + 30))  # after the teacher's steps
        folders = [p.parent for p in cut.path.rglob("history.json") if ".partial" in p.parts]
        finished = {(f / "model.safetensors").stat().st_mtime_ns for f in folders}
        assert len(finished) == (steps > 15)
        cut.distill()
        assert same(cut.network(), whole.network())
        assert finished <= {p.stat().st_mtime_ns for p in cut.path.rglob("model.safetensors")}


@pytest.mark.parametrize("steps", [15, 35])
def test_an_ensemble_killed_in_a_member_or_in_the_student_goes_on_to_the_same_weights(lab, steps):
    """30 steps each of the teacher and of its member, then 15 of the student."""
    scheme = {"ensemble": {"members": 1}}
    whole = lab("whole", distill={"scheme": scheme}).distill()
    # In a folder of its own, where no neighbour's student can be borrowed.
    teacher = {"train": {**TINY["teacher"]["train"], "checkpoint_every": 0.0}}
    cut = lab("far/cut", teacher=teacher, distill={"scheme": scheme, "checkpoint_every": 0.0})
    with pytest.raises(RuntimeError, match="power cut"):
        cut.distill(StopAfter(30 + steps))
    (checkpoint,) = cut.path.rglob("checkpoint.pt")
    assert (checkpoint.parent.parent.name == "members") == (steps < 30)
    finished = {p.stat().st_mtime_ns for p in cut.path.rglob("members/1/model.safetensors")}
    assert len(finished) == (steps > 30)
    resumed = Heard()
    cut.distill(resumed)
    assert sum("going on from epoch" in line for line in resumed.lines) == 1
    for folder in ("student", "student/members/1"):
        assert same(cut.network(folder), whole.network(folder))
    member = (cut.path / "student/members/1/model.safetensors").stat().st_mtime_ns
    assert finished <= {member}


class TestConfiguration:
    def test_a_scheme_is_a_name_or_a_name_with_parameters_and_comes_back_from_its_dump(self):
        for scheme in ("born_again", {"born_again": {"generations": 3}}):
            config = Config.model_validate({"distill": {"scheme": scheme}})
            assert config.distill.scheme.entry.generations == 3
            again = Config.model_validate(config.model_dump(mode="json"))
            assert again == config

    @pytest.mark.parametrize(
        "distill",
        [
            # What is alone at first and goes on, and networks that teach each other, are enough.
            {"methods": ["ft"], "alpha": 0.0, "epochs": 40},
            {"scheme": "online", "alpha": 0.0, "methods": []},
            {"scheme": {"label_refinery": {"first": "teacher"}}, "transfer": {"labels": 0.0}},
        ],
    )
    def test_labels_are_not_needed_where_something_else_is_learned_from(self, distill):
        assert Config.model_validate({"distill": distill}).distill.labels_weight == 0

    def test_a_scheme_brings_its_own_defaults_and_leaves_what_is_given(self):
        config = Config.model_validate({"distill": {"scheme": "label_refinery"}})
        assert config.distill.methods.entries[0].temperature == 1
        given = Config.model_validate({"distill": {"scheme": "label_refinery", "alpha": 0.5}})
        assert given.distill.alpha == 0.5

    @pytest.mark.parametrize(
        ("distill", "message"),
        [
            (
                {"scheme": "born_agian"},
                r"distill.scheme.*unknown scheme.*did you mean 'born_again'",
            ),
            ({"scheme": 3}, r"should be a name or one \{name"),
            ({"scheme": {"born_again": {"generation": 3}}}, "did you mean 'generations'"),
            ({"scheme": {"born_again": {"generations": 1}}}, "scheme.born_again.generations"),
            ({"scheme": {"assistant": {"chain": []}}}, "scheme.assistant.chain"),
            ({"scheme": {"assistant": {"chain": ["zoo:mlp"]}}, "methods": []}, "methods is empty"),
            (
                {"scheme": "ensemble", "methods": []},
                "in scheme ensemble the student learns by methods",
            ),
            ({"scheme": "specialists", "methods": []}, "scheme specialists the student learns by"),
            (
                {"scheme": "label_refinery", "transfer": {"labels": 0.0}},
                "first generation learns from labels, and transfer.labels is 0: set first to teacher",
            ),
            ({"scheme": {"online": {"peers": "zoo:mlp"}}}, "peers: should be a number, or a list"),
            (
                {"scheme": {"online": 3}},
                r"scheme.online: should be its parameters, .* not 3; it has peers",
            ),
            ({"methods": {"0": {"kd": None}}}, "no list is there yet that 0 could be the first of"),
            (
                {"methods": [{"kd": 4}]},
                r"methods.0.kd: should be its parameters.*it has .*temperature",
            ),
            (
                {"methods": [{"kd": None, "temperature": 4}]},
                "methods.0: .*kd and temperature stand side by side",
            ),
            (
                {"methods": [{"at": {"taps": ["a", "b"]}}]},
                r"methods.0.at: taps should be pairs, \[\[",
            ),
            ({"methods": [{"at": {"taps": [["a"]]}}]}, "taps should be pairs"),
            ({"methods": ["ab"], "alpha": 0.0, "epochs": 40}, "every method is `alone`"),
            ({"methods": ["mse"], "knowledge": {"top_k": 2}}, "mse needs every logit"),
            ({"scheme": {"ensemble": {"members": 0}}}, "members should be 1 to 100"),
            ({"scheme": {"ensemble": {"members": 2, "weights": [1, 2.0]}}}, "has 2 values"),
            ({"scheme": {"ensemble": {"members": 1, "weights": [0.0, 0.0]}}}, "not all 0"),
            (
                {"scheme": "ensemble", "methods": ["kd", "rkd"]},
                r"rkd needs features, and in scheme ensemble.*methods that work with it: .*kd",
            ),
            (
                {"scheme": {"born_again": {"ensemble": True}}, "methods": ["kd", "at"]},
                "at needs features, which an ensemble",
            ),
        ],
    )
    def test_what_cannot_work_is_refused_when_it_is_read(self, distill, message):
        import re

        assert re.search(message, refused(**distill)), refused(**distill)


def test_the_schema_describes_every_scheme():
    import jsonschema

    from edgekd.distill.scheme import SCHEMES

    schema = Config.model_json_schema()
    for value in (*SCHEMES.names(), {"ensemble": {"members": [{"model": "zoo:mlp"}]}},
                  {"assistant": {"chain": [{"model": "zoo:mlp", "args": {}}]}}):  # fmt: skip
        jsonschema.validate({"distill": {"scheme": value}}, schema)
    for value in ("nobody", {"ensemble": {"member": 2}}, {"born_again": {"generations": "two"}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"distill": {"scheme": value}}, schema)
