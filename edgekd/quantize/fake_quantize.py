"""Fake quantization: the student in PyTorch as its INT8 file computes it, to be trained further.

NNCF says where the runtimes quantize and with which ranges; what is trained is ours, in PyTorch's
own kernels: NNCF's compile C++ on first use and cannot be exported.
"""

from __future__ import annotations

import copy
import math
import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from edgekd.errors import StageError
from edgekd.quantize.recipes import Recipe
from edgekd.results import Arithmetic


class WeightQuantizer(nn.Module):
    """w → s·clamp(round(w / s)), s = max|w| / `high` per output channel, straight-through gradient.

    The scale follows the weights in every step (Krishnamoorthi 2018, §3.2). `axis` None: one for all.
    """

    def __init__(self, axis: int | None, low: int, high: int) -> None:
        super().__init__()
        self.axis, self.low, self.high = axis, low, high

    def scale(self, weight: Tensor) -> Tensor:
        """(channels,) float32, or one number; above zero for a channel of zeros too."""
        others = [d for d in range(weight.ndim) if d != self.axis]
        most: Tensor = weight.detach().abs().amax(others) / self.high
        return most.clamp_min(torch.finfo(torch.float32).eps)

    def forward(self, weight: Tensor) -> Tensor:
        """The weights as INT8 holds them, same shape."""
        scale = self.scale(weight)
        if self.axis is None:
            return torch.fake_quantize_per_tensor_affine(
                weight, float(scale), 0, self.low, self.high
            )
        zero = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(
            weight, scale, zero, self.axis, self.low, self.high
        )


class ActivationQuantizer(nn.Module):
    """x → s·(clamp(round(x / s) + z) − z), with s trained and z fixed by the calibration.

    The gradient of s is that of LSQ (Esser 2020, eq. 3, with its scale 1/√(n·q)); s is trained as
    s₀·exp(θ), so that it stays positive and steps are relative (Jain 2020, §3.3).
    """

    calibrated: Tensor

    def __init__(self, scale: float, zero: int, low: int, high: int) -> None:
        super().__init__()
        self.low, self.high, self.zero = low, high, zero
        self.register_buffer("calibrated", torch.tensor([scale]))
        self.theta = nn.Parameter(torch.zeros(1))

    @property
    def scale(self) -> float:
        """s, the step between two neighbouring levels."""
        return float(self.calibrated * self.theta.detach().exp())

    def forward(self, x: Tensor) -> Tensor:
        """The activations as INT8 holds them, same shape."""
        if not (self.training and torch.is_grad_enabled()):
            return torch.fake_quantize_per_tensor_affine(
                x, self.scale, self.zero, self.low, self.high
            )
        quantized: Tensor = torch._fake_quantize_learnable_per_tensor_affine(
            x,
            self.calibrated * self.theta.exp(),
            x.new_tensor([self.zero]),
            self.low,
            self.high,
            1 / math.sqrt(x[0].numel() * len(x) * self.high),
        )
        return quantized


class Constant(nn.Module):
    """What a quantizer has become for the exporters: QuantizeLinear and DequantizeLinear of ONNX.

    `scale` has one value, or one per channel along `axis`; all levels of 8 bits are open.
    """

    scale: Tensor
    zero: Tensor

    def __init__(self, scale: Tensor, zero: int, axis: int, signed: bool) -> None:
        super().__init__()
        self.axis = axis
        type = torch.int8 if signed else torch.uint8
        self.low, self.high = torch.iinfo(type).min, torch.iinfo(type).max
        self.register_buffer("scale", scale)
        self.register_buffer("zero", torch.full(scale.shape, zero, dtype=type))

    def forward(self, x: Tensor) -> Tensor:
        """The same as the trained one gives in evaluation mode."""
        if torch.compiler.is_exporting():
            return self._symbolic(x)
        if self.scale.ndim:
            return torch.fake_quantize_per_channel_affine(
                x, self.scale, self.zero.int(), self.axis, self.low, self.high
            )
        return torch.fake_quantize_per_tensor_affine(
            x, float(self.scale), int(self.zero), self.low, self.high
        )

    def _symbolic(self, x: Tensor) -> Tensor:
        axis: dict[str, Any] = {"axis": self.axis} if self.scale.ndim else {}
        levels = torch.onnx.ops.symbolic(
            "QuantizeLinear", (x, self.scale, self.zero), axis, dtype=self.zero.dtype, shape=x.shape
        )
        return torch.onnx.ops.symbolic(
            "DequantizeLinear", (levels, self.scale, self.zero), axis, dtype=x.dtype, shape=x.shape
        )


class Chain(nn.Module):
    """An `nn.Sequential` by another name: NNCF hangs its hooks beside the layers of the model."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self._names = [name for name, _ in layers.named_children()]
        for name, layer in layers.named_children():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        """One layer after the other."""
        for name in self._names:
            x = self.get_submodule(name)(x)
        return x


def load_operators() -> None:
    """NNCF's operators, which it compiles when they are used first; a slow machine takes minutes.

    Raises StageError where that does not come to an end.
    """
    from nncf.torch.extensions import ExtensionLoaderTimeoutException
    from nncf.torch.quantization.extensions import (
        QuantizedFunctionsCPU,
        QuantizedFunctionsCPULoader,
    )

    os.environ.setdefault("NNCF_EXTENSION_LOAD_TIMEOUT", "300")
    try:
        QuantizedFunctionsCPU.get("Quantize_forward")
    except ExtensionLoaderTimeoutException:
        raise StageError(
            "NNCF's operators were not compiled in time",
            where="quantize.qat",
            fix=f"rm -r {QuantizedFunctionsCPULoader.get_build_dir()}, which a process that was killed may "
            "have locked, and run again; NNCF_EXTENSION_LOAD_TIMEOUT is the time in seconds",
        ) from None


def fake_quantized(
    student: nn.Module, recipe: Recipe, samples: list[Tensor], types: Arithmetic
) -> nn.Module:
    """A copy of `student` with batch normalisation folded and quantizers where INT8 files have them.

    `samples` are normalised inputs (1, …) that the ranges are found from. Module paths stay what
    they are. Raises StageError when NNCF cannot quantize the model.
    """
    import nncf

    from edgekd.quantize.backend import quiet
    from edgekd.quantize.backends.nncf import advanced_parameters

    folded = fold_batch_norm(copy.deepcopy(student).eval(), samples[0])
    if isinstance(folded, nn.Sequential):
        folded = Chain(folded).eval()
    if recipe.range == "entropy":
        # Not NNCF's; it is only where training begins.
        recipe = recipe.model_copy(update={"range": "min-max"})
    settings = advanced_parameters(recipe, types)
    # Training corrects biases better.
    settings.disable_bias_correction = True
    settings.backend_params = {}
    with quiet():
        try:
            model: nn.Module = nncf.quantize(
                folded,
                nncf.Dataset(samples),
                preset=nncf.QuantizationPreset(recipe.preset),
                subset_size=len(samples),
                model_type=nncf.ModelType(recipe.model_type) if recipe.model_type else None,
                target_device=nncf.TargetDevice.CPU,
                advanced_parameters=settings,
            )
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            raise StageError(
                f"cannot be quantized in PyTorch: {type(error).__name__}: {lines[0][:300]}",
                where=type(student).__name__,
            ) from None
    _own_quantizers(model, samples[0], 63 if types.reduced_range else 127)
    return model


def frozen(model: nn.Module, example: Tensor) -> nn.Module:
    """A copy for the exporters: the same function, with scales that are constants."""
    model = copy.deepcopy(model).eval()
    storage = _hooks(model)
    for name, (hook, value) in _passing(model, example).items():
        if isinstance(hook, WeightQuantizer):
            # s = max|w| / high: no weight reaches the ends of the range, however wide it is.
            constant = Constant(hook.scale(value), 0, hook.axis or 0, signed=True)
        else:
            assert isinstance(hook, ActivationQuantizer)
            constant = Constant(torch.tensor(hook.scale), hook.zero, 0, signed=hook.low < 0)
        storage.set_submodule(name, constant)
    return model


def fold_batch_norm(model: nn.Module, example: Tensor) -> nn.Module:
    """Fold every batch normalisation that directly follows one convolution or linear layer into it.

    In place, in evaluation mode; its module becomes the identity. What is fed by anything else, or
    by a layer that is used twice, stays. Models that torch.export cannot trace stay as they are.
    """
    try:
        program = torch.export.export(model, (torch.cat([example, example]),), strict=False)
    except Exception:
        return model
    modules = dict(model.named_modules())
    calls: dict[str, int] = {}
    pairs: list[tuple[str, str]] = []
    for node in program.graph.nodes:
        path = _module_path(node)
        if path is None:
            continue
        if isinstance(modules.get(path), _LAYERS):
            calls[path] = calls.get(path, 0) + 1
        if isinstance(modules.get(path), nn.modules.batchnorm._BatchNorm):
            source = node.args[0] if node.args else None
            before = _module_path(source) if isinstance(source, torch.fx.Node) else None
            alone = isinstance(source, torch.fx.Node) and len(source.users) == 1
            if before is not None and isinstance(modules.get(before), _LAYERS) and alone:
                pairs.append((before, path))
    for layer, norm in pairs:
        if calls[layer] == 1 and sum(norm == other for _, other in pairs) == 1:
            _fold(model, modules[layer], norm)
    return model


_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def _fold(model: nn.Module, layer: nn.Module, norm: str) -> None:
    batch_norm: Any = model.get_submodule(norm)
    fuse: Any = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
    fused = fuse(layer, batch_norm)
    layer.weight, layer.bias = fused.weight, fused.bias
    parent, _, leaf = norm.rpartition(".")
    setattr(model.get_submodule(parent), leaf, nn.Identity())


def _module_path(node: torch.fx.Node) -> str | None:
    """The dotted path of the module that a traced operator belongs to."""
    stack = node.meta.get("nn_module_stack")
    return str(list(stack.values())[-1][0]) if stack else None


def _hooks(model: nn.Module) -> Any:
    from nncf.torch.function_hook.wrapper import get_hook_storage

    return get_hook_storage(model)


def _passing(model: nn.Module, example: Tensor) -> dict[str, tuple[nn.Module, Tensor]]:
    """Every hook by name, with what passes it when `example` is fed."""
    seen: dict[str, tuple[nn.Module, Tensor]] = {}

    def keep(name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[name] = (module, inputs[0])

        return hook

    handles = [
        hook.register_forward_pre_hook(keep(name)) for name, hook in _hooks(model).named_hooks()
    ]
    try:
        with torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return seen


class _Unquantized(nn.Module):
    """Takes a quantizer's place while the model is looked at: NNCF's would compile C++ first."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.quantizer = [quantizer]

    def forward(self, x: Tensor) -> Tensor:
        return x


def _own_quantizers(model: nn.Module, example: Tensor, most: int) -> None:
    """Put our modules where NNCF has put its own; weights become integers from −most to most.

    What is no matrix, such as the gain of a layer normalisation, runtimes do not compute in INT8.
    """
    storage = _hooks(model)
    for name, quantizer in list(storage.named_hooks()):
        storage.set_submodule(name, _Unquantized(quantizer))
    for name, (hook, value) in _passing(model, example).items():
        assert isinstance(hook, _Unquantized)
        if not isinstance(value, nn.Parameter):
            storage.set_submodule(name, _activation(hook.quantizer[0]))
        elif value.ndim > 1:
            storage.set_submodule(name, _weight(hook.quantizer[0], most))
        else:
            storage.delete_hook(name)


def _weight(quantizer: Any, most: int) -> WeightQuantizer:
    channels = [d for d, size in enumerate(quantizer.scale_shape) if size > 1]
    return WeightQuantizer(channels[0] if channels else None, -most, most)


def _activation(quantizer: Any) -> ActivationQuantizer:
    """Of all 256 levels, and with one scale for all channels: so the runtimes fuse it."""
    with torch.no_grad():
        ends = quantizer.get_input_low_input_high()
    low, high = (0, 255) if quantizer.level_low >= 0 else (-128, 127)
    least, most = float(ends[0].min()), float(ends[1].max())
    scale = max((most - least) / (high - low), torch.finfo(torch.float32).eps)
    return ActivationQuantizer(scale, min(max(round(low - least / scale), low), high), low, high)
