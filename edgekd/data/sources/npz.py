"""`npz:FILE`: arrays `x` and `y`, or `x_train`, `y_train`, `x_test`, `y_test`; also `classes`, `ids`."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.config.schema import Data
from edgekd.data.numbers import numbers, of_numbers
from edgekd.data.source import (
    Samples,
    content_hash,
    existing,
    number_classes,
    source,
    without_labels,
)
from edgekd.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

_SPLIT = ("x_train", "y_train", "x_test", "y_test")


@source("npz")
class Npz:
    """Inputs (n, features), (n, h, w), (n, h, w, c) or (n, c, h, w); uint8 is taken as 0–255.

    `y` of type float, (n,) or (n, outputs), are numbers to be predicted; integers (n, h, w) the classes
    of pixels, 255 for none. `classes` then names the outputs or the classes of pixels.
    Labels are integers or text, (n,) or (n, 1). With `classes` (text) integer labels index it.
    `ids` (text or integers) name the samples, for records of a teacher's answers.
    """

    def fingerprint(self, location: Path | None) -> str:
        """Hash of the file."""
        return content_hash(existing(location, folder=False, kind="npz"))

    def load(self, location: Path | None, config: Data) -> Samples:
        """Both splits, or one array that edgekd splits. Object arrays (pickles) are refused."""
        import numpy as np

        path = existing(location, folder=False, kind="npz")
        arrays = _read(path)
        for name in {*_SPLIT, "x", "y"} & arrays.keys():
            if not arrays[name].ndim:
                raise UsageError(f"{name} is a single value", where=str(path))
        test = None
        if all(name in arrays for name in _SPLIT):
            train_x, train_y, test_x, test_y = (arrays[name] for name in _SPLIT)
            if train_x.shape[1:] != test_x.shape[1:]:
                raise UsageError(
                    f"x_test has samples of shape {test_x.shape[1:]}, x_train {train_x.shape[1:]}",
                    where=str(path),
                )
            if train_y.shape[1:] != test_y.shape[1:]:
                raise UsageError(
                    f"y_test has labels of shape {test_y.shape[1:]}, y_train {train_y.shape[1:]}",
                    where=str(path),
                )
            x, y = np.concatenate([train_x, test_x]), np.concatenate([train_y, test_y])
            test = np.arange(len(x)) >= len(train_x)
        elif "x" in arrays and "y" in arrays:
            x, y = arrays["x"], arrays["y"]
        else:
            raise UsageError(
                f"holds the arrays {', '.join(sorted(arrays)) or 'none'}",
                where=str(path),
                fix="should hold x and y, or x_train, y_train, x_test and y_test",
            )
        if len(x) != len(y):
            raise UsageError(f"x has {len(x)} samples, y {len(y)}", where=str(path))
        inputs, scale = _inputs(x, path)
        ids = _ids(arrays.get("ids"), len(inputs), path)
        if of_numbers(y, config):
            labels, classes, task = numbers(y, arrays.get("classes"), config, where=str(path))
            return Samples(inputs, labels, classes, scale, test, ids, task=task)
        if y.ndim == 3 and inputs.ndim == 4 and y.shape[1:] == inputs.shape[2:]:
            labels, classes = _pixels(y, arrays.get("classes"), path)
            return Samples(inputs, labels, classes, scale, test, ids, task="segmentation")
        if y.ndim == 2 and y.shape[1] == 1:
            y = y[:, 0]
        if y.ndim != 1:
            raise UsageError(
                f"x has shape {x.shape}, y {y.shape}; should be (n, …) and (n,)",
                where=str(path),
                fix="or numbers (n, outputs) for regression, or (n, height, width) for segmentation",
            )
        labels, classes = _labels(y, arrays.get("classes"), path)
        return Samples(inputs, labels, classes, scale, test, ids)

    def unlabelled(self, location: Path | None, config: Data) -> Samples:
        """`x`, or `x_train` and `x_test`; no other array is looked at."""
        import numpy as np

        path = existing(location, folder=False, kind="npz")
        arrays = _read(path)
        names = ["x"] if "x" in arrays else [n for n in ("x_train", "x_test") if n in arrays]
        if not names:
            raise UsageError(
                f"holds the arrays {', '.join(sorted(arrays)) or 'none'}",
                where=str(path),
                fix="should hold x",
            )
        parts = [_inputs(arrays[name], path) for name in names]
        if len({(inputs.shape[1:], scale) for inputs, scale in parts}) > 1:
            raise UsageError("x_train and x_test have samples of two forms", where=str(path))
        return without_labels(np.concatenate([inputs for inputs, _ in parts]), parts[0][1])


def _pixels(
    y: np.ndarray, classes: np.ndarray | None, path: Path
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class numbers of pixels as int64, −1 or 255 as −1."""
    import numpy as np

    if y.dtype.kind not in "iu":
        raise UsageError(f"y of pixels should be integers, not {y.dtype}", where=str(path))
    labels = y.astype(np.int64)
    labels[labels == 255] = -1
    highest = int(labels.max(initial=-1))
    names = tuple(map(str, range(highest + 1) if classes is None else classes.reshape(-1)))
    if labels.min(initial=0) < -1 or highest >= len(names):
        raise UsageError(
            f"y has labels {labels.min()} to {highest} for {len(names)} classes", where=str(path)
        )
    return labels, names


def _read(path: Path) -> dict[str, np.ndarray]:
    import numpy as np

    with path.open("rb") as file:
        magic = file.read(6)
    if not magic.startswith((b"PK", b"\x93NUMPY")):
        raise UsageError("not an .npz archive", where=str(path))
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise UsageError("holds a single array; should be an .npz archive", where=str(path))
        with archive:
            return {name: archive[name] for name in archive.files}
    except ValueError as error:
        if "allow_pickle" in str(error) or "Object arrays" in str(error):
            raise UsageError(
                "holds Python objects (a pickle), which could run code when loaded",
                where=str(path),
                fix="save plain arrays of numbers or text",
            ) from None
        raise UsageError(f"cannot be read: {error}", where=str(path)) from None
    except (
        OSError,
        EOFError,
        zlib.error,
        zipfile.BadZipFile,
        KeyError,
        NotImplementedError,
    ) as error:
        raise UsageError(f"cannot be read as .npz: {error}", where=str(path)) from None


def _inputs(x: np.ndarray, path: Path) -> tuple[np.ndarray, float]:
    import numpy as np

    if x.dtype.kind not in "uifb" or x.ndim not in (2, 3, 4):
        raise UsageError(
            f"x is {x.dtype} of shape {x.shape}",
            where=str(path),
            fix="should be numbers, (n, features), (n, h, w), (n, h, w, c) or (n, c, h, w)",
        )
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[3] in (1, 3, 4) and x.shape[1] not in (1, 3, 4):
        x = x.transpose(0, 3, 1, 2)
    scale = 255.0 if x.dtype == np.uint8 else 1.0
    if x.dtype != np.uint8:
        with np.errstate(over="ignore"):
            x = x.astype(np.float32)
    return np.ascontiguousarray(x), scale


def _ids(ids: np.ndarray | None, count: int, path: Path) -> tuple[str, ...] | None:
    """The samples' names, training samples before test samples."""
    if ids is None:
        return None
    names = tuple(str(name) for name in ids.reshape(-1))
    if len(names) != count or len(set(names)) != count:
        raise UsageError(
            f"ids has {len(set(names))} different names for {count} samples", where=str(path)
        )
    return names


def _labels(
    y: np.ndarray, classes: np.ndarray | None, path: Path
) -> tuple[np.ndarray, tuple[str, ...]]:
    import numpy as np

    if classes is None or y.dtype.kind not in "iu":
        return number_classes(y, where=str(path))
    names = tuple(str(name) for name in classes.reshape(-1))
    if len(y) and not (y.min() >= 0 and y.max() < len(names)):
        raise UsageError(
            f"y has labels {y.min()} to {y.max()} for {len(names)} classes", where=str(path)
        )
    return y.astype(np.int64), names
