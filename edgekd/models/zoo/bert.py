"""A small BERT (Devlin 2019): token ids and an attention mask in, a class out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekd.errors import UsageError
from edgekd.models.network import Shape, network


class Layer(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x)): post-norm, as in the paper."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.value, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """(n, tokens, dim) in and out; `seen` (n, 1, 1, tokens) is which tokens are attended to."""
        n, tokens, _ = x.shape
        width = self.out.in_features  # dim, unless heads were pruned
        q, k, v = (
            part(x).reshape(n, tokens, self.heads, width // self.heads).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        x = self.norm1(x + self.out(y.transpose(1, 2).reshape(n, tokens, width)))
        z: Tensor = self.norm2(x + self.down(F.gelu(self.up(x))))
        return z


class Bert(nn.Module):
    """Token and position embeddings, `depth` layers, tanh of the first token's, linear."""

    def __init__(
        self,
        length: int,
        classes: int,
        vocabulary: int,
        dim: int,
        depth: int,
        heads: int,
        padding: int = 0,
    ) -> None:
        super().__init__()
        self.padding = padding
        self.tokens, self.positions = nn.Embedding(vocabulary, dim), nn.Embedding(length, dim)
        self.norm = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(Layer(dim, heads) for _ in range(depth))
        self.pooler, self.fc = nn.Linear(dim, dim), nn.Linear(dim, classes)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Ids (n, tokens) and a mask, 1 where there is a token, → logits (n, classes).

        Without a mask all ids but `padding` are tokens; the first one always is. Ids may come as
        floats, as data sets of numbers give them.
        """
        ids = tokens.long()
        place = torch.arange(ids.shape[1], device=ids.device)
        seen = ((ids != self.padding) if mask is None else mask.bool()) | (place == 0)
        x = self.norm(self.tokens(ids) + self.positions(place))
        for layer in self.layers:
            x = layer(x, seen[:, None, None])
        logits: Tensor = self.fc(self.pooler(x[:, 0]).tanh())
        return logits


@network(
    "bert",
    "small BERT for texts; args: dim (64), depth (2), heads (4); for ids in other data (data.mean "
    "[0, …], std [1, …]) also vocabulary (1000), padding (0)",
    example=(64,),
    widths=("dim",),
    depths=("depth",),
)
def bert(
    input_shape: Shape,
    classes: int,
    vocabulary: int = 1000,
    dim: int = 64,
    depth: int = 2,
    heads: int = 4,
    padding: int = 0,
) -> nn.Module:
    """For up to `input_shape[0]` ids below `vocabulary`. `heads` must divide `dim`."""
    if len(input_shape) != 1:
        raise UsageError(f"takes token ids (length,); these inputs have the shape {input_shape}")
    if heads < 1 or dim % heads:
        raise UsageError(f"heads {heads} does not divide dim {dim}")
    return Bert(input_shape[0], classes, vocabulary, dim, depth, heads, padding)
