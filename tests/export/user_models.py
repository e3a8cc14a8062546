"""Networks as a user writes them, that exporters cannot take, and some that they can."""

import torch
from torch import nn


class Branches(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x * 2
        return x


class SingularValues(nn.Module):
    def forward(self, x):
        return torch.linalg.svdvals(x.reshape(-1, 8, 8))


class Inverse(nn.Module):
    """ONNX has no operator for it, OpenVINO has."""

    def forward(self, x):
        y = x.reshape(-1, 8, 8)
        return torch.linalg.inv(y @ y.transpose(1, 2) + torch.eye(8)).flatten(1)


class Broken(nn.Module):
    def forward(self, x):
        return x @ torch.zeros(3, 3)


class OneBatch(nn.Module):
    def forward(self, x):
        return x + torch.zeros(int(x.shape[0]), 1) * torch.ones(2, 1)


class Net(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.stem = nn.Flatten()
        self.blocks = nn.Sequential(nn.Linear(64, 64), part)

    def forward(self, x):
        return self.blocks(self.stem(x))


class Tokens(nn.Module):
    """Two inputs and two outputs, as a small transformer has them."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask.unsqueeze(-1).float()
        states = self.embedding(input_ids) * mask
        pooled = states.sum(1) / mask.sum(1).clamp(min=1)
        return self.head(pooled), pooled
