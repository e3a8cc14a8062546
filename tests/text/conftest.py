import importlib.util
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
EXAMPLE = Path(__file__).parents[2] / "examples/text"


def module(name):
    """A file of the example."""
    spec = importlib.util.spec_from_file_location(f"text_example_{name}", EXAMPLE / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """Reviews, and a BERT with random weights and its tokenizer, as files; `save(folder, …)` makes others."""
    reviews, teacher = module("reviews"), module("teacher")
    root = tmp_path_factory.mktemp("text")
    data = reviews.write(root / "reviews", train=240, test=120)
    rows = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    texts = [row["text"] for row in rows]

    def save(folder, classes=reviews.CLASSES, *, words=texts, **config):
        torch.manual_seed(0)
        model, tokenizer = teacher.untrained(words, list(classes), dim=32, depth=2)
        model.config.layer_norm_eps = 1e-5
        for part in model.modules():
            if isinstance(part, torch.nn.LayerNorm):
                part.eps = 1e-5
        # Far from symmetric, so that every part matters.
        for part in model.parameters():
            part.data.add_(0.1 * torch.randn_like(part))
        for key, value in config.items():
            setattr(model.config, key, value)
        model.eval().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return SimpleNamespace(
        data=data, rows=rows, texts=texts, save=save, folder=save(root / "teacher"), root=root
    )


@pytest.fixture
def config(bert):
    """A run on the reviews; sections in place of its own."""

    def make(**sections):
        return {
            "name": "text",
            "data": {"source": f"text:{bert.data}", "text": {"max_length": 24}},
            "teacher": {"model": f"hf:{bert.folder}"},
            "student": {"model": "zoo:bert", "args": {"dim": 16, "depth": 2, "heads": 2}},
            "distill": {"epochs": 1, "threads": 1, "optimizer": "adamw", "learning_rate": 1e-3},
            "history": None,
        } | sections

    return make
