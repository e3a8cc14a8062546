"""The matrix of benchmarks/export_matrix.py: part of it measured anew, and all of the committed table."""

import json

import numpy as np
import pytest
import torch

from benchmarks.export_matrix import ARCHITECTURES, RESULTS, digits, measure, report
from edgekd.profile.device.runtimes import RUNTIMES

BY_NAME = {arch.name: arch for arch in ARCHITECTURES}
CELLS = 2 * 3 * 2


def cells(row):
    return {(c["format"], c["variant"], c["runtime"]): c for c in row["cells"]}


def check(row):
    """Every cell passes or says why not; f32 and f16 files must pass wherever they can be opened."""
    found = cells(row)
    assert len(found) == CELLS
    for (format, variant, runtime), cell in found.items():
        assert cell.get("passed") or cell["reason"], (row["name"], format, variant, runtime)
        opens = format in RUNTIMES[runtime].formats + RUNTIMES[runtime].also
        if opens and variant == "f32":
            assert cell["passed"], (row["name"], format, runtime, cell.get("reason"))
            assert cell["agreement"] > 0.99
            assert cell["accuracy"] == pytest.approx(row["accuracy"], abs=0.01)


def short(name, **changes):
    """A network of the matrix, trained for an epoch of few samples."""
    import dataclasses

    return dataclasses.replace(BY_NAME[name], epochs=1, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zoo:bert", "zoo:gru", "zoo:conv1d"])
def test_networks_of_other_kinds_pass_in_every_format_and_runtime(name, tmp_path):
    pytest.importorskip("nncf")
    pytest.importorskip("sklearn")
    row = measure(short(name), tmp_path, limit=400)
    check(row)
    found = cells(row)
    assert (
        found["onnx", "int8", "onnxruntime"]["size"] < found["onnx", "f32", "onnxruntime"]["size"]
    )
    assert found["onnx", "f16", "onnxruntime"]["error"] < 1e-2


def test_the_mask_of_token_ids_hides_real_tokens():
    pytest.importorskip("sklearn")
    data = digits((), limit=50)
    ids, mask = data.train["tokens"], data.train["mask"]
    assert ids.dtype == mask.dtype == torch.int64
    assert ((ids == 0) == (mask == 0)).all()
    lengths = mask.sum(1)
    assert 48 <= lengths.min() < lengths.max() <= 64


def test_images_take_the_shape_of_the_network():
    pytest.importorskip("sklearn")
    data = digits((3, 20, 12), limit=20)
    assert data.train["input"].shape == (14, 3, 20, 12)
    assert data.test["input"].shape == (6, 3, 20, 12)
    assert torch.equal(data.test["input"][:, 0], data.test["input"][:, 2])
    assert np.isfinite(data.train["input"].numpy()).all()


# As the proof asks for; 27 with those of torchvision and timm.
MEASURED = 20


def test_every_cell_of_the_committed_table_passes_or_says_why():
    rows = [json.loads(line) for line in (RESULTS / "export_matrix.jsonl").read_text().splitlines()]
    assert len({row["name"] for row in rows}) == len(rows) >= MEASURED
    for row in rows:
        check(row)
    table = (RESULTS / "export_matrix.md").read_text()
    assert all(f"| {row['name']}" in table for row in rows)


def test_a_cell_that_fails_is_in_the_table_with_its_reason():
    cell = {
        "format": "openvino",
        "variant": "int8",
        "runtime": "openvino",
        "reason": "it is broken",
    }
    text = report([{"name": "mine", "accuracy": 0.5, "cells": [cell]}])
    assert "| mine | 50.0% | IR INT8 | OpenVINO | – | – | – | – | – | – | it is broken |" in text
