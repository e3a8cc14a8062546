"""The networks that a cost model is fitted to: random, but always the same, and none of the zoo's.

Each has a shape of its own in the style of a published family, so that its operators meet each other
as they do in real models: convolutions with what is fused into them, pools, products, attention.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

SIZE = 80
_OPSET = 20
_CLASSES = (10, 100, 1000)
# From tens of microseconds to a fifth of a second on one core of a server.
_LEAST_FLOPS, _MOST_FLOPS = 1e5, 8e9
# Every so many networks the batch is fixed in the file.
_FIXED_BATCH = 7


@dataclass(frozen=True)
class SuiteNetwork:
    """`shape` is the input's without the batch; `model` is complete with (random) weights."""

    name: str
    shape: tuple[int, ...]
    model: onnx.ModelProto


def suite_network(index: int) -> SuiteNetwork:
    """Network `index` of the suite; the same bytes whenever and wherever it is made."""
    random = np.random.default_rng([20, index])
    turn, position = divmod(index, len(_ORDER))
    style = _ORDER[position]
    # Sizes are spread evenly over the styles, and over the networks of each.
    share = (turn * 0.6180339887 + position / len(_ORDER)) % 1
    budget = _LEAST_FLOPS * (_MOST_FLOPS / _LEAST_FLOPS) ** share
    graph = _Builder(random, budget)
    _STYLES[style](graph)
    batch = 1 if index % _FIXED_BATCH == _FIXED_BATCH - 1 else "batch"
    return SuiteNetwork(f"{index:03d}-{style}", graph.input, graph.model(batch))


class _Builder:
    """A graph in the making; `now` is the tensor that comes next, `shape` its shape without batch."""

    def __init__(self, random: np.random.Generator, budget: float) -> None:
        self.random, self.budget = random, budget
        self.flops = 0.0
        self.now = "input"
        self.shape: tuple[int, ...] = (0,)
        self.input: tuple[int, ...] = (0,)
        self._nodes: list[Any] = []
        self._weights: list[Any] = []

    def start(self, *shape: int) -> None:
        """The input."""
        self.shape = self.input = shape

    def pick(self, *choices: Any) -> Any:
        """One of them."""
        return choices[int(self.random.integers(len(choices)))]

    @property
    def spent(self) -> float:
        """The share of the operations that this network should have."""
        return self.flops / self.budget

    def op(self, type: str, *inputs: str, **attributes: Any) -> str:
        """Add an operator; its output becomes `now`."""
        import onnx

        self.now = f"{type.lower()}_{len(self._nodes)}"
        name = f"node_{self.now}"
        node = onnx.helper.make_node(type, list(inputs), [self.now], name=name, **attributes)
        self._nodes.append(node)
        return self.now

    def weight(self, *shape: int, fan: int | None = None) -> str:
        """Random values that keep the variance for `fan` inputs."""
        scale = 1 / math.sqrt(fan or math.prod(shape[1:]) or 1)
        values = scale * self.random.standard_normal(shape, np.float32)
        return self.constant(values.astype(np.float32))

    def constant(self, values: np.ndarray | np.floating[Any]) -> str:
        import onnx

        name = f"weight_{len(self._weights)}"
        self._weights.append(onnx.numpy_helper.from_array(np.asarray(values), name))
        return name

    def conv(self, c: int, k: int = 3, s: int = 1, g: int = 1, act: str = "") -> None:
        """A convolution with bias, "same" padding, and an activation."""
        ci, h, w = self.shape
        pads = [k // 2] * 4
        weight, bias = self.weight(c, ci // g, k, k), self.weight(c)
        self.op(
            "Conv", self.now, weight, bias, kernel_shape=[k, k], strides=[s, s], pads=pads, group=g,
            dilations=[1, 1],
        )  # fmt: skip
        self.shape = (c, (h + 2 * (k // 2) - k) // s + 1, (w + 2 * (k // 2) - k) // s + 1)
        self.flops += 2 * math.prod(self.shape) * ci // g * k * k
        self.act(act)

    def act(self, kind: str) -> None:
        """relu, relu6, hardswish, silu, gelu, sigmoid or nothing."""
        x = self.now
        if kind == "relu6":
            self.op("Clip", x, self.constant(np.float32(0)), self.constant(np.float32(6)))
        elif kind == "silu":
            self.op("Mul", x, self.op("Sigmoid", x))
        elif kind:
            names = {"relu": "Relu", "hardswish": "HardSwish", "gelu": "Gelu", "sigmoid": "Sigmoid",
                     "hardsigmoid": "HardSigmoid"}  # fmt: skip
            self.op(names[kind], x)

    def add(self, other: str) -> None:
        """A residual connection."""
        self.op("Add", self.now, other)

    def pool(self, kind: str, k: int, s: int) -> None:
        """Max or Average."""
        c, h, w = self.shape
        p = (k - 1) // 2
        self.op(f"{kind}Pool", self.now, kernel_shape=[k, k], strides=[s, s], pads=[p] * 4)
        self.shape = (c, (h + 2 * p - k) // s + 1, (w + 2 * p - k) // s + 1)

    def squeeze_excite(self, share: int) -> None:
        """Channels weighed by what is in them."""
        x, shape = self.now, self.shape
        self.op("ReduceMean", x, self.constant(np.array([2, 3])), keepdims=1)
        self.shape = (shape[0], 1, 1)
        self.conv(max(8, shape[0] // share), 1, act="relu")
        self.conv(shape[0], 1, act="hardsigmoid")
        self.op("Mul", x, self.now)
        self.shape = shape

    def shuffle(self, groups: int) -> None:
        """Channels of all groups mixed."""
        c, h, w = self.shape
        self.op("Reshape", self.now, self.constant(np.array([-1, groups, c // groups, h, w])))
        self.op("Transpose", self.now, perm=[0, 2, 1, 3, 4])
        self.op("Reshape", self.now, self.constant(np.array([-1, c, h, w])))

    def half(self, first: bool) -> None:
        """One half of the channels."""
        c = self.shape[0]
        ends = (0, c // 2) if first else (c // 2, c)
        low, high = (self.constant(np.array([end])) for end in ends)
        self.op("Slice", self.now, low, high, self.constant(np.array([1])))
        self.shape = (c // 2, *self.shape[1:])

    def concat(self, *others: str, channels: int) -> None:
        """Channels side by side."""
        self.op("Concat", *others, axis=1)
        self.shape = (channels, *self.shape[1:])

    def gemm(self, n: int, act: str = "") -> None:
        """A linear layer on (batch, features)."""
        self.op("Gemm", self.now, self.weight(n, self.shape[-1]), self.weight(n), transB=1)
        self.flops += 2 * n * self.shape[-1]
        self.shape = (n,)
        self.act(act)

    def linear(self, n: int, act: str = "") -> None:
        """A linear layer on (batch, tokens, features)."""
        tokens, d = self.shape
        self.op("MatMul", self.now, self.weight(d, n, fan=d))
        self.op("Add", self.now, self.weight(n))
        self.flops += 2 * tokens * n * d
        self.shape = (tokens, n)
        self.act(act)

    def norm(self) -> None:
        """Over the features of each token."""
        d = self.shape[-1]
        ones, zeros = np.ones(d, np.float32), np.zeros(d, np.float32)
        self.op(
            "LayerNormalization", self.now, self.constant(ones), self.constant(zeros), axis=-1, epsilon=1e-5
        )  # fmt: skip

    def attention(self, heads: int) -> None:
        """softmax(q·kᵀ/√d)·v, as PyTorch's exporter takes it apart."""
        tokens, d = self.shape
        self.linear(3 * d)
        self.op("Reshape", self.now, self.constant(np.array([-1, tokens, 3, heads, d // heads])))
        stacked = self.op("Transpose", self.now, perm=[2, 0, 3, 1, 4])
        q, k, v = (self.op("Gather", stacked, self.constant(np.array(i)), axis=0) for i in range(3))
        turned = self.op("Transpose", k, perm=[0, 1, 3, 2])
        root = self.constant(np.float32((d // heads) ** -0.25))
        self.op("MatMul", self.op("Mul", q, root), self.op("Mul", turned, root))
        self.op("MatMul", self.op("Softmax", self.now, axis=-1), v)
        self.flops += 4 * tokens * tokens * d
        self.op("Transpose", self.now, perm=[0, 2, 1, 3])
        self.op("Reshape", self.now, self.constant(np.array([-1, tokens, d])))
        self.shape = (tokens, d)
        self.linear(d)

    def tokens(self) -> None:
        """(channels, h, w) → (h·w, channels)."""
        c, h, w = self.shape
        self.op("Reshape", self.now, self.constant(np.array([-1, c, h * w])))
        self.op("Transpose", self.now, perm=[0, 2, 1])
        self.shape = (h * w, c)

    def head(self) -> None:
        """Mean over what is left of the image (or the tokens), then classes."""
        c = self.shape[-1] if len(self.shape) == 2 else self.shape[0]
        if len(self.shape) == 3:
            if self.pick(True, False):
                self.op("GlobalAveragePool", self.now)
            else:
                self.op("ReduceMean", self.now, self.constant(np.array([2, 3])), keepdims=1)
            self.op("Reshape", self.now, self.constant(np.array([-1, c])))
        elif len(self.shape) == 2:
            self.op("ReduceMean", self.now, self.constant(np.array([1])), keepdims=0)
        self.shape = (c,)
        self.gemm(self.pick(*_CLASSES))

    def model(self, batch: str | int) -> onnx.ModelProto:
        """The finished file."""
        import onnx

        float32 = onnx.TensorProto.FLOAT
        ends = [
            onnx.helper.make_tensor_value_info(name, float32, [batch, *shape])
            for name, shape in (("input", self.input), ("logits", self.shape))
        ]
        self._nodes[-1].output[0] = "logits"
        graph = onnx.helper.make_graph(self._nodes, "suite", [ends[0]], [ends[1]], self._weights)
        model = onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", _OPSET)], ir_version=10
        )
        onnx.checker.check_model(model)
        return model


def _channels(b: _Builder, least: float, most: float, multiple: int = 4) -> int:
    """Mostly multiples of 8, as networks have, log-uniform."""
    c = math.exp(b.random.uniform(math.log(min(least, most)), math.log(most)))
    multiple = b.pick(multiple, 8, 8, 16, 16, 32)
    return max(multiple, round(c / multiple) * multiple)


def _image(b: _Builder) -> None:
    """An input as large as the budget can afford."""
    sizes = [28, 32, 32, 48, 64, 96, 112, 160, 224]
    most = 1 + sum(b.budget > 3e3 * size**2 for size in sizes[1:])
    size = b.pick(*sizes[:most])
    b.start(1 if size == 28 else b.pick(1, 3, 3, 3), size, size)


def _until_spent(b: _Builder, block: Callable[[int], None], least: int = 3, most: int = 26) -> None:
    """Blocks until the budget is used; the image is halved now and then, channels grow with it."""
    done = 0
    while done < least or (b.spent < 0.9 and done < most):
        small = min(b.shape[1:]) <= 6
        if done and not small and (b.random.random() < 0.3 or b.spent > (done % 4 + 1) / 5):
            block(2)
        else:
            block(1)
        done += 1


def _stem(b: _Builder, act: str) -> None:
    _image(b)
    large = b.shape[1] >= 96
    k = b.pick(3, 3, 5, 7) if large else 3
    b.conv(_channels(b, 12, 64), k, 2 if large or b.pick(True, False, False) else 1, act=act)
    if large and b.pick(True, False):
        b.pool("Max", 3, 2)


def _widest(b: _Builder) -> int:
    """Channels that a block here can have without using the whole budget at once."""
    left = max(b.budget * 0.3, 1e5) / math.prod(b.shape[1:]) / 18
    return int(min(640, max(12, math.sqrt(left))))


def _plain(b: _Builder) -> None:
    act = b.pick("relu", "relu", "silu", "relu6")
    _stem(b, act)

    def block(stride: int) -> None:
        c = _channels(b, max(8, min(b.shape[0], _widest(b)) // 2), max(12, _widest(b)))
        if stride == 2 and b.pick(True, True, False):
            b.conv(c, 3, act=act)
            b.pool(b.pick("Max", "Max", "Average"), 2, 2)
        else:
            b.conv(c, b.pick(3, 3, 3, 1, 5), stride, act=act)

    _until_spent(b, block)
    b.head()


def _residual(b: _Builder) -> None:
    act = b.pick("relu", "relu", "relu", "silu")
    _stem(b, act)

    def block(stride: int) -> None:
        x, before = b.now, b.shape
        c = before[0] if stride == 1 else _channels(b, before[0], max(before[0] + 8, _widest(b)))
        if stride == 1 and b.pick(True, False, False):
            c = _channels(b, 8, _widest(b) + 4)
        if b.pick(True, True, False):
            b.conv(c, 3, stride, act=act)
            b.conv(c, 3)
        else:
            middle = max(8, c // 4 // 8 * 8)
            b.conv(middle, 1, act=act)
            b.conv(middle, 3, stride, act=act)
            b.conv(c, 1)
        y, after = b.now, b.shape
        if (c, stride) != (before[0], 1):
            b.now, b.shape = x, before
            b.conv(c, 1, stride)
        else:
            b.now = x
        b.op("Add", y, b.now)
        b.shape = after
        b.act(act)

    _until_spent(b, block)
    b.head()


def _inverted(b: _Builder) -> None:
    act = b.pick("relu6", "relu", "hardswish", "silu")
    excite = b.pick(False, False, True)
    _stem(b, act)

    def block(stride: int) -> None:
        x, before = b.now, b.shape
        c = (
            before[0]
            if stride == 1 and b.pick(True, False)
            else _channels(b, 8, 8 + _widest(b) // 2)
        )
        wide = before[0] * b.pick(1, 2, 3, 4, 6, 6)
        if wide != before[0]:
            b.conv(wide, 1, act=act)
        b.conv(wide, b.pick(3, 3, 3, 5), stride, wide, act=act)
        if excite:
            b.squeeze_excite(b.pick(4, 8))
        b.conv(c, 1)
        if b.shape == before:
            b.add(x)

    _until_spent(b, block)
    b.conv(_channels(b, 64, 1280, 16), 1, act=act)
    b.head()


def _separable(b: _Builder) -> None:
    act = b.pick("relu", "relu", "relu6")
    _stem(b, act)

    def block(stride: int) -> None:
        c = b.shape[0]
        b.conv(c, b.pick(3, 3, 3, 5), stride, c, act=act)
        b.conv(_channels(b, max(8, c * 3 // 4), max(16, _widest(b) * 3 // 2)), 1, act=act)

    _until_spent(b, block)
    b.head()


def _shuffled(b: _Builder) -> None:
    _stem(b, "relu")
    groups = b.pick(2, 2, 3, 4)

    def grouped(stride: int) -> None:
        x, before = b.now, b.shape
        c = groups * 4 * max(2, round(_channels(b, 16, 16 + 2 * _widest(b)) / groups / 4))
        if stride == 1 and before[0] % (4 * groups) == 0:
            c = before[0]
        b.conv(
            c // 4 // groups * groups, 1, 1, groups if before[0] % groups == 0 else 1, act="relu"
        )
        b.shuffle(groups)
        b.conv(b.shape[0], 3, stride, b.shape[0])
        b.conv(c, 1, 1, groups)
        if b.shape == before:
            b.add(x)
        elif stride == 2:
            y, after = b.now, b.shape
            b.now, b.shape = x, before
            b.pool("Average", 3, 2)
            b.concat(y, b.now, channels=after[0] + before[0])
        b.act("relu")

    def split(stride: int) -> None:
        x, before = b.now, b.shape
        c = before[0] // 2 if stride == 1 else max(8, _channels(b, 12, 12 + 2 * _widest(b)) // 2)
        if stride == 1:
            b.half(True)
            left = b.now
            b.now, b.shape = x, before
            b.half(False)
        else:
            b.conv(before[0], 3, 2, before[0])
            b.conv(c, 1, act="relu")
            left = b.now
            b.now, b.shape = x, before
        b.conv(c, 1, act="relu")
        b.conv(c, 3, stride, c)
        b.conv(c, 1, act="relu")
        b.concat(left, b.now, channels=2 * c)
        b.shuffle(2)

    block = b.pick(grouped, split)
    if block is split:
        b.conv(_channels(b, 16, 64, 8), 1, act="relu")
    _until_spent(b, block, most=18)
    b.conv(_channels(b, 64, 1024, 16), 1, act="relu")
    b.head()


def _branches(b: _Builder) -> None:
    _stem(b, "relu")

    def dense(stride: int) -> None:
        if stride == 2:
            b.conv(max(8, b.shape[0] // 2 // 4 * 4), 1, act="relu")
            b.pool("Average", 2, 2)
        x, before = b.now, b.shape
        growth = _channels(b, 8, 8 + _widest(b) // 2)
        b.conv(2 * growth, 1, act="relu")
        b.conv(growth, 3)
        b.concat(x, b.now, channels=before[0] + growth)
        b.act("relu")

    def inception(stride: int) -> None:
        if stride == 2:
            b.pool("Max", 3, 2)
        x, before = b.now, b.shape
        ends, total = [], 0
        for k in (1, 3, 5, 0):
            b.now, b.shape = x, before
            c = _channels(b, 8, 8 + _widest(b) // 2)
            if k == 0:
                b.pool(b.pick("Max", "Average"), 3, 1)
            if k > 1:
                b.conv(max(8, c // 2), 1, act="relu")
            b.conv(c, max(k, 1), act="relu")
            ends.append(b.now)
            total += c
        b.concat(*ends, channels=total)

    _until_spent(b, b.pick(dense, inception), most=14)
    b.head()


def _perceptron(b: _Builder) -> None:
    inputs = b.pick(64, 196, 784, 784, 1024, 3072)
    side = b.pick(True, False)
    b.start(1, 28, 28) if inputs == 784 and side else b.start(inputs)
    if len(b.shape) == 3:
        b.op("Reshape", b.now, b.constant(np.array([-1, inputs])))
        b.shape = (inputs,)
    # Weights have to come from memory: 64 MB are enough.
    budget = min(b.budget / 2, 1.6e7)
    act = b.pick("relu", "relu", "gelu", "silu")
    for _ in range(int(b.random.integers(1, 6))):
        widest = max(16, budget / 3 / b.shape[0])
        b.gemm(_channels(b, 16, min(4096, max(24, widest)), 8), act)
    b.gemm(b.pick(*_CLASSES))


def _transformer(b: _Builder) -> None:
    patch = b.pick(4, 7, 8, 14, 16)
    b.start(b.pick(1, 3), patch * b.pick(4, 6, 7, 8, 14), patch * 4)
    b.shape = b.input = (b.input[0], b.input[1], b.input[1])
    heads = b.pick(2, 3, 4, 6)
    tokens = (b.input[1] // patch) ** 2
    widest = math.sqrt(max(b.budget, 4e6) / tokens / 24 / 2)
    d = heads * max(8, min(64, int(b.random.uniform(0.4, 1) * widest / heads) // 8 * 8))
    weight, bias = b.weight(d, b.input[0], patch, patch), b.weight(d)
    b.op("Conv", b.now, weight, bias, kernel_shape=[patch, patch], strides=[patch, patch])
    b.flops += 2 * tokens * d * b.input[0] * patch**2
    b.shape = (d, b.input[1] // patch, b.input[1] // patch)
    b.tokens()
    b.op("Add", b.now, b.weight(1, tokens, d))
    blocks = 0
    while blocks < 1 or (b.spent < 0.9 and blocks < 12):
        x = b.now
        b.norm()
        b.attention(heads)
        x = b.op("Add", x, b.now)
        b.norm()
        b.linear(d * b.pick(2, 4, 4), b.pick("gelu", "gelu", "relu", "silu"))
        b.linear(d)
        b.op("Add", x, b.now)
        blocks += 1
    b.norm()
    b.head()


_STYLES: dict[str, Callable[[_Builder], None]] = {
    "plain": _plain, "residual": _residual, "inverted": _inverted, "separable": _separable,
    "shuffled": _shuffled, "branches": _branches, "perceptron": _perceptron,
    "transformer": _transformer,
}  # fmt: skip
_ORDER = (
    "residual", "plain", "inverted", "transformer", "separable", "residual", "shuffled", "branches",
    "inverted", "perceptron",
)  # fmt: skip
