"""A small vision transformer (Dosovitskiy 2021): pre-norm blocks, mean over the tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekd.errors import UsageError
from edgekd.models.network import Shape, image_channels, network


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(n, tokens, dim) in and out."""
        n, tokens, _ = x.shape
        width = self.out.in_features  # dim, unless heads were pruned
        qkv = self.qkv(self.norm1(x)).reshape(n, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(attended.transpose(1, 2).reshape(n, tokens, width))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class VisionTransformer(nn.Module):
    """Patches to tokens with a learned position each, `depth` blocks, mean, linear."""

    def __init__(
        self, shape: Shape, classes: int, patch: int, dim: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        tokens = (shape[1] // patch) * (shape[2] // patch)
        self.embed = nn.Conv2d(shape[0], dim, patch, patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, tokens, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(depth)))
        self.norm, self.fc = nn.LayerNorm(dim), nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) → logits (n, classes)."""
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.position
        logits: Tensor = self.fc(self.norm(self.blocks(tokens)).mean(1))
        return logits


@network(
    "vit",
    "small vision transformer; args: patch (4), dim (64), depth (4), heads (4)",
    widths=("dim",),
    depths=("depth",),
)
def vit(
    input_shape: Shape, classes: int, patch: int = 4, dim: int = 64, depth: int = 4, heads: int = 4
) -> nn.Module:
    """`patch` must divide height and width, `heads` must divide `dim`."""
    image_channels(input_shape)
    if patch < 1 or input_shape[1] % patch or input_shape[2] % patch:
        raise UsageError(
            f"patch {patch} does not divide images of {input_shape[1]}×{input_shape[2]}"
        )
    if heads < 1 or dim % heads:
        raise UsageError(f"heads {heads} does not divide dim {dim}")
    return VisionTransformer(input_shape, classes, patch, dim, depth, heads)
