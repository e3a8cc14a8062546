"""Feature methods against loops over single elements, in float64, and what all have in common."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from edgekd.distill.method import METHODS, FeatureMethod, Knowledge
from edgekd.distill.methods.reviewkd import hcl
from edgekd.distill.regressors import matched, regressor
from edgekd.errors import UsageError

FEATURE_METHODS = [name for name in METHODS.names() if issubclass(METHODS.get(name), FeatureMethod)]
# A regressor that is not trained yet stands between the student and the teacher.
REGRESSED = {"fitnet", "vid", "ab", "ft", "fsp", "crd", "reviewkd", "tinybert"}
N = 5
POPULATION = torch.arange(2 * N) % 3  # classes of twice as many samples as are in the batch
# The same with samples that have no place in training.
PARTLY = POPULATION.where(torch.tensor([1, 1, 1, 1, 1, 0, 1, 1, 0, 1], dtype=torch.bool), -1)


def maps(channels, size, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N, channels, size, size, generator=generator, dtype=torch.float64)


def vectors(width, seed):
    return torch.randn(N, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def knowledge(*features):
    return Knowledge(torch.zeros(N, 3), {str(i): f for i, f in enumerate(features)})


def loss_of(name, student, teacher, population=POPULATION, **parameters):
    """The method built for and applied to lists of paired features."""
    method = METHODS.get(name)(taps=[(str(i), str(i)) for i in range(len(student))], **parameters)
    s = knowledge(*student)
    t = replace(knowledge(*teacher), indices=torch.arange(N), population=population)
    loss = method.build(s, t)
    if isinstance(loss, nn.Module):
        loss.double()
    return loss, loss(s, t, torch.zeros(N, dtype=torch.long))


def features_for(name, seed, channels=4):
    place = METHODS.get(name).place
    if place == "penultimate":
        return [vectors(6, seed)]
    count = 2 if place == "stages" else 1
    return [maps(channels, 4 // (i + 1), seed + i) for i in range(count)]


def test_the_methods_are_those_of_the_design():
    assert set(FEATURE_METHODS) == {
        "fitnet", "at", "sp", "pkt", "rkd", "cc", "vid", "nst", "ab", "ft", "fsp", "crd", "reviewkd",
        "tinybert",
    }  # fmt: skip


@pytest.mark.parametrize("name", FEATURE_METHODS)
def test_the_student_gets_a_gradient_and_the_teacher_none(name):
    student = [f.requires_grad_() for f in features_for(name, 1)]
    teacher = features_for(name, 11)
    _, loss = loss_of(name, student, teacher)
    assert loss.ndim == 0
    loss.backward()
    assert all(f.grad.isfinite().all() and f.grad.abs().max() > 0 for f in student)
    assert all(f.grad is None for f in teacher)


@pytest.mark.parametrize("name", sorted(set(FEATURE_METHODS) - REGRESSED))
def test_it_is_zero_for_a_student_like_the_teacher_and_positive_for_another(name):
    same, other = features_for(name, 1), features_for(name, 7)
    assert abs(loss_of(name, same, same)[1].item()) < 1e-9
    assert loss_of(name, same, other)[1].item() > 1e-9


@pytest.mark.parametrize("name", FEATURE_METHODS)
def test_equal_samples_and_zero_features_stay_finite(name):
    for make in (torch.zeros_like, torch.ones_like):
        student = [make(f).requires_grad_() for f in features_for(name, 1)]
        _, loss = loss_of(name, student, features_for(name, 3))
        loss.backward()
        assert loss.isfinite()
        assert all(f.grad.isfinite().all() for f in student)


@pytest.mark.parametrize(
    "name", sorted(set(FEATURE_METHODS) - {"pkt", "rkd", "cc", "crd", "tinybert"})
)
def test_maps_of_other_sizes_and_channels_are_matched(name):
    student = [maps(3, 4, 1)] * len(features_for(name, 0))
    teacher = [maps(5, 8, 2)] * len(student)
    assert loss_of(name, student, teacher)[1].isfinite()


def test_at_equals_a_loop():
    s, t = maps(3, 2, 1), maps(5, 2, 2)

    def attention(f, i):
        q = [
            sum(f[i, c, y, x].item() ** 2 for c in range(f.shape[1]))
            for y in (0, 1)
            for x in (0, 1)
        ]
        return [v / math.hypot(*q) for v in q]

    total = sum(
        (a - b) ** 2
        for i in range(N)
        for a, b in zip(attention(s, i), attention(t, i), strict=True)
    )
    assert loss_of("at", [s], [t])[1].item() == pytest.approx(total / (N * 4))


def test_sp_equals_a_loop():
    s, t = maps(3, 2, 1), maps(4, 3, 2)

    def gram(f):
        g = [[(f[i] * f[j]).sum().item() for j in range(N)] for i in range(N)]
        return [[v / math.hypot(*row) for v in row] for row in g]

    a, b = gram(s), gram(t)
    total = sum((a[i][j] - b[i][j]) ** 2 for i in range(N) for j in range(N))
    assert loss_of("sp", [s], [t])[1].item() == pytest.approx(total / N**2)


def test_pkt_equals_a_loop():
    s, t = vectors(3, 1), vectors(6, 2)

    def rows(f):
        c = [
            [(torch.cosine_similarity(f[i], f[j], dim=0).item() + 1) / 2 for j in range(N)]
            for i in range(N)
        ]
        return [[v / sum(row) for v in row] for row in c]

    q, p = rows(s), rows(t)
    total = sum(p[i][j] * math.log(p[i][j] / q[i][j]) for i in range(N) for j in range(N))
    assert loss_of("pkt", [s], [t])[1].item() == pytest.approx(total / N**2, rel=1e-4)


def test_rkd_equals_a_loop():
    s, t = vectors(3, 1), vectors(6, 2)

    def distance(f):
        d = {(i, j): torch.dist(f[i], f[j]).item() for i in range(N) for j in range(N)}
        mean = sum(d.values()) / (N * (N - 1))
        return {key: v / mean for key, v in d.items()}

    def angle(f):
        found = {}
        for i, j, k in itertools.product(range(N), repeat=3):
            a, b = f[j] - f[i], f[k] - f[i]
            norm = a.norm().item() * b.norm().item()
            found[i, j, k] = (a @ b).item() / norm if norm else 0.0
        return found

    def smooth(a, b):
        differences = [abs(a[key] - b[key]) for key in a]
        return sum(d**2 / 2 if d < 1 else d - 0.5 for d in differences) / len(differences)

    expected = 25 * smooth(distance(s), distance(t)) + 50 * smooth(angle(s), angle(t))
    assert loss_of("rkd", [s], [t])[1].item() == pytest.approx(expected, rel=1e-6)


def test_rkd_ignores_turning_and_scaling_the_students_space():
    t = vectors(6, 2)
    turn, _ = torch.linalg.qr(
        torch.randn(6, 6, generator=torch.Generator().manual_seed(3)).double()
    )
    assert loss_of("rkd", [3 * t @ turn], [t])[1].item() < 1e-9


def test_cc_equals_a_loop_and_its_series_nears_the_gaussian_kernel():
    s, t = vectors(3, 1), vectors(6, 2)

    def kernel(f, i, j, order=2, g=0.4):
        dot = (f[i] @ f[j] / f[i].norm() / f[j].norm()).item()
        return sum(
            math.exp(-2 * g) * (2 * g) ** p / math.factorial(p) * dot**p for p in range(order + 1)
        )

    pairs = list(itertools.product(range(N), repeat=2))
    total = sum((kernel(s, i, j) - kernel(t, i, j)) ** 2 for i, j in pairs)
    assert loss_of("cc", [s], [t])[1].item() == pytest.approx(total / N**2)
    unit = s / s.norm(dim=1, keepdim=True)
    gaussian = torch.exp(-0.4 * (unit[:, None] - unit[None]).square().sum(2))
    assert torch.allclose(METHODS.get("cc")(order=10).kernel(s), gaussian, atol=1e-6)


def test_nst_equals_a_loop():
    s, t = maps(3, 2, 1), maps(4, 2, 2)

    def mean_kernel(a, b, i):
        total = 0.0
        for c, d in itertools.product(range(a.shape[1]), range(b.shape[1])):
            x, y = a[i, c].flatten(), b[i, d].flatten()
            total += (x @ y / x.norm() / y.norm()).item() ** 2
        return total / (a.shape[1] * b.shape[1])

    expected = sum(
        mean_kernel(t, t, i) + mean_kernel(s, s, i) - 2 * mean_kernel(s, t, i) for i in range(N)
    )
    assert loss_of("nst", [s], [t])[1].item() == pytest.approx(expected / N)


def test_fitnet_is_the_mean_squared_error_after_its_regressor():
    s, t = maps(3, 4, 1), maps(5, 4, 2)
    loss, found = loss_of("fitnet", [s], [t])
    (r,) = loss.parts
    loss.eval()
    expected = (r(s) - t).square().mean()
    assert loss(knowledge(s), knowledge(t), None).item() == pytest.approx(expected.item())
    assert found.isfinite()
    assert r(s).shape == t.shape


def test_vid_is_the_gaussian_likelihood_with_a_variance_per_channel():
    s, t = vectors(3, 1), vectors(4, 2)
    loss, found = loss_of("vid", [s], [t])
    (mu,) = loss.parts
    variance = torch.nn.functional.softplus(mu.alpha) + 1e-5
    assert torch.allclose(variance, torch.full_like(variance, 5.0), atol=1e-4)
    density = torch.distributions.Normal(mu(s), variance.sqrt())
    constant = math.log(2 * math.pi) / 2
    assert found.item() == pytest.approx((-density.log_prob(t)).mean().item() - constant, rel=1e-6)


def test_regressors_refuse_features_without_a_common_form():
    with pytest.raises(UsageError, match="choose other taps"):
        regressor(maps(3, 4, 1), vectors(4, 1))
    tokens = torch.zeros(2, 7, 16)
    assert regressor(tokens, torch.zeros(2, 7, 32))(tokens).shape == (2, 7, 32)


def test_matching_pools_the_larger_map():
    a, b = matched(maps(3, 8, 1), maps(5, 4, 2))
    assert a.shape[2:] == b.shape[2:] == (4, 4)
    assert a[0, 0, 0, 0].item() == pytest.approx(maps(3, 8, 1)[0, 0, :2, :2].mean().item())


def untrained(name, student, teacher, **parameters):
    """The loss, in evaluation mode, and what its own layers make of the student's maps."""
    built, _ = loss_of(name, student, teacher, **parameters)
    built.eval()
    value = built(knowledge(*student), knowledge(*teacher), torch.zeros(N, dtype=torch.long))
    return value.item(), built.parts


def test_ab_equals_a_loop():
    student, teacher = [maps(3, 4, 1), maps(4, 2, 2)], [maps(5, 4, 3), maps(6, 2, 4)]
    value, r = untrained("ab", student, teacher, margin=0.5)
    total = 0.0
    for weight, r_i, f_s, f_t in zip((0.5, 1.0), r, student, teacher, strict=True):
        terms = [
            max(0.0, 0.5 - a) ** 2 if b > 0 else max(0.0, a + 0.5) ** 2
            for a, b in zip(r_i(f_s).flatten().tolist(), f_t.flatten().tolist(), strict=True)
        ]
        total += weight * sum(terms) / len(terms)
    assert value == pytest.approx(total)


def test_fsp_equals_a_loop():
    student, teacher = [maps(3, 4, 1), maps(4, 2, 2)], [maps(5, 4, 3), maps(6, 2, 4)]
    value, r = untrained("fsp", student, teacher)

    def flow(first, second, i, a, b):
        half = [
            [first[i, a, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean() for x in (0, 1)]
            for y in (0, 1)
        ]
        return sum((half[y][x] * second[i, b, y, x]).item() for x in (0, 1) for y in (0, 1)) / 4

    s = [r_i(f) for r_i, f in zip(r, student, strict=True)]
    cells = list(itertools.product(range(N), range(5), range(6)))
    total = sum((flow(*s, *cell) - flow(*teacher, *cell)) ** 2 for cell in cells)
    assert value == pytest.approx(total / len(cells))


def test_reviewkd_of_one_stage_is_the_hierarchical_loss_of_its_fused_map():
    s, t = maps(3, 8, 1), maps(5, 8, 2)
    value, fusions = untrained("reviewkd", [s], [t])
    fused = fusions[0]["expand"](fusions[0]["reduce"](s))

    def mean_square(size):
        step, terms = 8 // size, []
        for i, c, y, x in itertools.product(range(N), range(5), range(size), range(size)):
            window = (i, c, slice(y * step, y * step + step), slice(x * step, x * step + step))
            terms.append((fused[window].mean() - t[window].mean()).item() ** 2)
        return sum(terms) / len(terms)

    levels = {8: 1.0, 4: 0.5, 2: 0.25, 1: 0.125}
    expected = sum(w * mean_square(size) for size, w in levels.items()) / sum(levels.values())
    assert value == pytest.approx(expected)


def test_reviewkd_lets_later_stages_teach_earlier_ones():
    student = [maps(3, 4, 1).requires_grad_(), maps(4, 2, 2).requires_grad_()]
    teacher = [maps(5, 4, 3), maps(6, 2, 4)]
    built, _ = loss_of("reviewkd", student, teacher)
    only_first = [
        teacher[0],
        built.parts[1]["expand"](built.parts[1]["reduce"](student[1])).detach(),
    ]
    built.eval()
    only_first[1] = built.parts[1]["expand"](built.parts[1]["reduce"](student[1])).detach()
    loss = built(knowledge(*student), knowledge(*only_first), torch.zeros(N, dtype=torch.long))
    loss.backward()
    # The last stage's own term is zero: what reaches it comes through the fusion of the first.
    assert student[1].grad.abs().max() > 0


def test_reviewkd_fuses_a_stage_with_what_the_later_ones_became():
    """Pixel by pixel: the first share is the stage's own, the second the later map's, enlarged."""
    student = [maps(3, 4, 1), maps(4, 2, 2), maps(5, 1, 3)]
    teacher = [maps(5, 4, 4), maps(6, 2, 5), maps(7, 1, 6)]
    value, parts = untrained("reviewkd", student, teacher)
    later, expected = None, 0.0
    for part, s, t in reversed(list(zip(parts, student, teacher, strict=True))):
        x = part["reduce"](s)
        if later is not None:
            fused = torch.empty_like(x)
            for i, y, z in itertools.product(range(N), range(x.shape[2]), range(x.shape[3])):
                own, below = x[i, :, y, z], later[i, :, y // 2, z // 2]
                weight, bias = part["attention"].weight[:, :, 0, 0], part["attention"].bias
                a = (weight @ torch.cat([own, below]) + bias).sigmoid()
                fused[i, :, y, z] = a[0] * own + a[1] * below
            x = fused
        later = x
        expected += hcl(part["expand"](x), t).item()
    assert value == pytest.approx(expected)


@pytest.mark.parametrize(("name", "count"), [("fsp", 1), ("reviewkd", 2)])
def test_too_few_stages_or_vectors_are_refused(name, count):
    features = [vectors(4, i) for i in range(count)]
    with pytest.raises(UsageError, match=f"{name} needs feature maps"):
        loss_of(name, features, features)


def test_ft_equals_a_loop_and_leaves_the_paraphraser_as_it_is():
    student, teacher = [maps(3, 4, 1)], [maps(6, 4, 2)]
    built, _ = loss_of("ft", student, teacher, rate=0.5)
    (part,) = built.parts
    before = {k: v.clone() for k, v in part.state_dict().items() if "translator" not in k}
    built.train()
    student[0].requires_grad_()
    value = built(knowledge(*student), knowledge(*teacher), None)
    value.backward()
    assert all(torch.equal(before[k], v) for k, v in part.state_dict().items() if k in before)
    assert all(p.grad is None for p in part["encoder"].parameters())
    assert student[0].grad.abs().max() > 0
    part.eval()
    factor, found = part["encoder"](teacher[0]), part["translator"].train()(student[0])
    assert factor.shape == found.shape == (N, 3, 4, 4)
    total = 0.0
    for i in range(N):
        a, b = found[i].flatten().tolist(), factor[i].flatten().tolist()
        total += sum(
            abs(x / math.hypot(*a) - y / math.hypot(*b)) for x, y in zip(a, b, strict=True)
        )
    assert value.item() == pytest.approx(total / (N * 48))


def test_ft_trains_its_paraphraser_first_and_nothing_else():
    student, teacher = [maps(3, 4, 1).requires_grad_()], [maps(6, 4, 2)]
    built, _ = loss_of("ft", student, teacher)
    (part,) = built.parts
    loss = built.train().initial(knowledge(*student), knowledge(*teacher), None)
    loss.backward()
    assert student[0].grad is None
    assert all(p.grad is None for p in part["translator"].parameters())
    assert all(p.grad is not None for p in part["encoder"].parameters())
    rebuilt = part["decoder"](part["encoder"](teacher[0]))
    errors = zip(rebuilt.flatten().tolist(), teacher[0].flatten().tolist(), strict=True)
    assert loss.item() == pytest.approx(sum((a - b) ** 2 for a, b in errors) / teacher[0].numel())


def crd(student, teacher, **parameters):
    built, _ = loss_of("crd", [student], [teacher], **{"dim": 3, "negatives": 7} | parameters)
    return built


def ask_crd(built, student, teacher, indices):
    t = replace(knowledge(teacher), indices=indices)
    return built(knowledge(student), t, POPULATION[indices])


@pytest.mark.parametrize(("population", "count"), [(POPULATION, 10), (PARTLY, 8)])
def test_crd_equals_a_loop(population, count):
    s, t = vectors(4, 1), vectors(6, 2)
    built = crd(s, t, population=population)
    memory_s, memory_t, z = built.memory_s.clone(), built.memory_t.clone(), built.z.clone()
    assert (z > 0).all()  # set by the first batch
    indices = torch.tensor([9, 0, 4, 2, 7])
    state = torch.get_rng_state()
    drawn = built.draw(POPULATION[indices])
    torch.set_rng_state(state)
    found = ask_crd(built, s, t, indices)
    unit = torch.nn.functional.normalize
    sides = [
        (unit(built.embed_s(s)), memory_t, z[0].item()),
        (unit(built.embed_t(t)), memory_s, z[1].item()),
    ]
    expected, noise = 0.0, 7 / count
    for own, memory, density in sides:
        for i in range(N):
            e = [
                math.exp((own[i] @ memory[j]).item() / 0.07) / density
                for j in (indices[i], *drawn[i])
            ]
            expected -= math.log(e[0] / (e[0] + noise + 1e-7)) / N
            expected -= sum(math.log(noise / (x + noise + 1e-7)) for x in e[1:]) / N
    assert found.item() == pytest.approx(expected, rel=1e-9)
    for memory, before, own in ((built.memory_s, memory_s, sides[0][0]),
                                (built.memory_t, memory_t, sides[1][0])):  # fmt: skip
        for row, j in enumerate(indices.tolist()):
            moved = 0.5 * before[j] + 0.5 * own[row]
            torch.testing.assert_close(memory[j], (moved / moved.norm()).detach())
        rest = [j for j in range(10) if j not in indices]
        assert torch.equal(memory[rest], before[rest])


@pytest.mark.parametrize(("population", "count"), [(POPULATION, 10), (PARTLY, 8)])
def test_crds_constant_is_n_times_the_mean_of_the_first_scores(population, count):
    built = crd(vectors(4, 1), vectors(6, 2), population=population)
    built.z.fill_(-1)
    scores = torch.rand(5, 8, generator=torch.Generator().manual_seed(0)) + 1
    total = sum(scores.flatten().tolist())
    assert built.density(1, scores).item() == pytest.approx(count * total / 40, rel=1e-6)
    assert built.density(1, 2 * scores).item() == pytest.approx(count * total / 40, rel=1e-6)
    assert METHODS.get("crd")().negatives == 16384


def test_crd_draws_every_sample_of_the_other_classes_equally_often_and_none_of_its_own():
    built = crd(vectors(4, 1), vectors(6, 2), negatives=30_000)
    torch.manual_seed(0)
    for label, drawn in enumerate(built.draw(torch.arange(3))):
        counts = drawn.bincount(minlength=10)
        others = label != POPULATION
        assert counts[~others].sum() == 0
        expected = 30_000 / others.sum()
        chi2 = ((counts[others] - expected) ** 2 / expected).sum().item()
        assert chi2 < 30  # 6 degrees of freedom: p < 1e-4


def test_crd_never_draws_samples_that_are_not_trained_on():
    population = torch.tensor([0, -1, 1, -1, 2, 0, 1, -1, 2, 0])
    t = replace(knowledge(vectors(6, 2)), indices=torch.arange(N), population=population)
    built = METHODS.get("crd")(taps=[("0", "0")], negatives=500).build(knowledge(vectors(4, 1)), t)
    drawn = built.draw(torch.tensor([0, 1, 2]))
    assert set(drawn.flatten().tolist()) == {0, 2, 4, 5, 6, 8, 9}
    assert built.memory_s.shape == (10, 128)


def test_tokens_and_maps_meet():
    """A transformer's 17 tokens, one of them of the class, are a 4×4 map of their channels."""
    tokens, f = torch.randn(N, 17, 6).double(), maps(3, 4, 1)
    _, loss = loss_of("at", [f], [tokens])
    as_map = tokens[:, 1:].transpose(1, 2).reshape(N, 6, 4, 4)
    assert loss.item() == pytest.approx(loss_of("at", [f], [as_map])[1].item())
    for name in sorted(set(FEATURE_METHODS) - {"pkt", "rkd", "cc", "crd", "tinybert"}):
        student = [maps(3, 4, 1)] * len(features_for(name, 0))
        assert loss_of(name, student, [tokens] * len(student))[1].isfinite()
