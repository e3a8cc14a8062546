"""Where a network's attention is: modules that say how many heads they have and hold the layers of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

# What modules call their number of heads, the features of one head, and those of all together.
_HEADS = ("num_heads", "heads", "n_heads", "num_attention_heads")
_SIZES = ("head_dim", "dim_head", "head_size", "attention_head_size")
_WIDTHS = ("all_head_size", "attn_dim", "inner_dim")
# How many of queries, keys and values a linear layer of such a name makes.
_MAKES = {
    "q": 1, "k": 1, "v": 1, "query": 1, "key": 1, "value": 1, "kv": 2, "qkv": 3, "inproj": 3,
}  # fmt: skip


@dataclass(frozen=True)
class Attention:
    """`module`, called `name` in its network, says in `attribute` how many heads it has.

    `layers` are the linear layers that make its queries, keys and values, with how many of the three.
    """

    name: str
    module: nn.Module
    attribute: str
    layers: dict[nn.Linear, int]

    @property
    def heads(self) -> int:
        """Heads, as the module says."""
        count: int = getattr(self.module, self.attribute)
        return count

    @property
    def width(self) -> int:
        """Features of all heads together, as the weights say."""
        layer, makes = next(iter(self.layers.items()))
        return len(layer.weight) // makes

    @property
    def size(self) -> int:
        """Features of one head."""
        return self.width // self.heads

    @property
    def even(self) -> bool:
        """Whether queries, keys and values all are so many heads of one size."""
        widths = {len(layer.weight) / makes for layer, makes in self.layers.items()}
        return widths == {self.heads * self.size}

    def stated(self) -> list[str]:
        """Other attributes of the module that say the size of a head, or the width."""
        own = vars(self.module)
        return [name for name, value in self._follows().items() if own.get(name) == value]

    def restate(self, names: Iterable[str]) -> None:
        """Make these attributes right again."""
        for name in names:
            setattr(self.module, name, self._follows()[name])

    def _follows(self) -> dict[str, int]:
        return {**dict.fromkeys(_SIZES, self.size), **dict.fromkeys(_WIDTHS, self.width)}


def attentions(network: nn.Module) -> list[Attention]:
    """All attention in the network that says its number of heads and holds its linear layers itself."""
    found = []
    for name, module in network.named_modules():
        said = [key for key in _HEADS if _is_count(getattr(module, key, None))]
        layers = {
            child: _MAKES[_plain(key)]
            for key, child in module.named_children()
            if isinstance(child, nn.Linear) and _plain(key) in _MAKES
        }
        if said and layers:
            found.append(Attention(name, module, said[0], layers))
    return found


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _plain(name: str) -> str:
    return name.lower().replace("_", "").removesuffix("proj").removesuffix("lin")
