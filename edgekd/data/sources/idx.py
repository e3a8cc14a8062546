"""`idx:FOLDER`: the four IDX files of the MNIST family, plain or gzipped.

Format: http://yann.lecun.com/exdb/mnist — two zero bytes, the type, the number of dimensions, each
dimension as a big-endian uint32, the values row by row.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.config.schema import Data
from edgekd.data.source import Samples, content_hash, existing, number_classes, source
from edgekd.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

_PARTS = {
    ("train", "images"): r"train-images[-.]idx3-ubyte(\.gz)?$",
    ("train", "labels"): r"train-labels[-.]idx1-ubyte(\.gz)?$",
    ("test", "images"): r"(t10k|test)-images[-.]idx3-ubyte(\.gz)?$",
    ("test", "labels"): r"(t10k|test)-labels[-.]idx1-ubyte(\.gz)?$",
}
_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


@source("idx")
class Idx:
    """MNIST, Fashion-MNIST, KMNIST, one split of EMNIST; labels of any values."""

    def fingerprint(self, location: Path | None) -> str:
        """Hashes of the four files."""
        files = _find(existing(location, folder=True, kind="idx"))
        return " ".join(content_hash(path) for path in files.values())

    def load(self, location: Path | None, config: Data) -> Samples:
        """Training and test images as (n, 1, rows, columns), with the source's own test split."""
        import numpy as np

        files = _find(existing(location, folder=True, kind="idx"))
        arrays = {part: read_idx(path) for part, path in files.items()}
        for split in ("train", "test"):
            images, labels = arrays[split, "images"], arrays[split, "labels"]
            if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
                raise UsageError(
                    f"holds images of shape {images.shape} for labels of shape {labels.shape}; "
                    "should be (n, rows, columns) and (n,)",
                    where=str(files[split, "images"]),
                )
        train, test = arrays["train", "images"], arrays["test", "images"]
        if train.shape[1:] != test.shape[1:]:
            raise UsageError(
                f"test images are {test.shape[1:]}, training images {train.shape[1:]}",
                where=str(files["test", "images"]),
            )
        labels, classes = number_classes(
            np.concatenate([arrays["train", "labels"], arrays["test", "labels"]]),
            where=str(files["train", "labels"]),
        )
        inputs = np.concatenate([train, test])[:, None]
        return Samples(
            inputs=inputs if inputs.dtype == np.uint8 else inputs.astype(np.float32),
            labels=labels,
            classes=classes,
            scale=255.0 if inputs.dtype == np.uint8 else 1.0,
            test=np.arange(len(labels)) >= len(train),
        )


def _find(folder: Path) -> dict[tuple[str, str], Path]:
    """The file of each part. Raises UsageError when one is missing or there are several."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    found = {}
    for part, pattern in _PARTS.items():
        # The same file both plain and gzipped is common: the plain one, later in this order, wins.
        matches = {
            name.removesuffix(".gz"): name
            for name in sorted(names, reverse=True)
            if re.search(pattern, name)
        }
        if len(matches) != 1:
            problem = f"several files for the {' '.join(part)}: {', '.join(matches.values())}"
            if not names:
                problem = "the folder is empty"
            elif not matches:
                problem = f"no file for the {' '.join(part)}"
            raise UsageError(
                problem,
                where=str(folder),
                fix="idx: needs a folder with one each of train-images-idx3-ubyte, "
                "train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte, plain or .gz",
            )
        (found[part],) = (folder / name for name in matches.values())
    return found


def read_idx(path: Path) -> np.ndarray:
    """One IDX file as an array. Raises UsageError when it is damaged or of another format."""
    import numpy as np

    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"cannot be read: {error}", where=str(path)) from None
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _TYPES or data[3] == 0:
        raise UsageError("not an IDX file", where=str(path))
    header = 4 + 4 * data[3]
    if len(data) < header:
        raise UsageError("the file is cut short", where=str(path))
    shape = struct.unpack(f">{data[3]}I", data[4:header])
    dtype = np.dtype(_TYPES[data[2]])
    expected = math.prod(shape) * dtype.itemsize
    if len(data) - header != expected:
        raise UsageError(
            f"holds {len(data) - header} bytes of values; its header promises {expected}",
            where=str(path),
        )
    values = np.frombuffer(data, dtype, offset=header).reshape(shape)
    return values.astype(dtype.newbyteorder("="))
