"""`folder:FOLDER`: a sub-folder per class with PNG or JPEG images; or `train/` and `test/` of such."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.config.schema import Data
from edgekd.data.source import Samples, existing, listing_hash, source, without_labels
from edgekd.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

_SUFFIXES = (".png", ".jpg", ".jpeg")
GREY = ("1", "L", "LA", "I", "I;16")


@source("folder")
class Folder:
    """Classes are the sub-folders in alphabetical order. All images grey: one channel; else RGB."""

    def fingerprint(self, location: Path | None) -> str:
        """Of the files' names, sizes and times of change."""
        folder = existing(location, folder=True, kind="folder")
        return listing_hash(folder, sorted(images_below(folder)))

    def load(self, location: Path | None, config: Data) -> Samples:
        """Every image as uint8, resized to `data.image_size` where it is set."""
        import numpy as np

        folder = existing(location, folder=True, kind="folder")
        splits = ("train", "test") if _has_splits(folder) else ("",)
        classes = _class_names([folder / split for split in splits])
        files: list[tuple[Path, int, bool]] = [
            (path, label, split == "test")
            for split in splits
            for label, name in enumerate(classes)
            for path in sorted(images_below(folder / split / name))
        ]
        if not files:
            raise UsageError(
                "the folder is empty: it has no PNG or JPEG image in a sub-folder per class",
                where=str(folder),
            )
        return Samples(
            inputs=_stacked([path for path, _, _ in files], config),
            labels=np.array([label for _, label, _ in files], np.int64),
            classes=classes,
            scale=255.0,
            test=np.array([test for _, _, test in files]) if len(splits) == 2 else None,
            ids=tuple(path.relative_to(folder).as_posix() for path, _, _ in files),
        )

    def unlabelled(self, location: Path | None, config: Data) -> Samples:
        """Every image below the folder, in whatever sub-folders or in none."""
        folder = existing(location, folder=True, kind="folder")
        paths = sorted(images_below(folder))
        if not paths:
            raise UsageError("has no PNG or JPEG image", where=str(folder))
        return without_labels(_stacked(paths, config), 255.0)


def _stacked(paths: list[Path], config: Data) -> np.ndarray:
    """(n, channels, height, width) uint8."""
    import numpy as np

    images = [open_image(path) for path in paths]
    grey = all(image.mode in GREY for image in images)
    arrays = [array_of(image, grey, config.image_size) for image in images]
    check_sizes(paths, arrays)
    return np.stack(arrays)


def _has_splits(folder: Path) -> bool:
    """Whether it is `train/CLASS/…` and `test/CLASS/…` rather than two classes of these names."""
    return all(
        (folder / split).is_dir() and any(p.is_dir() for p in (folder / split).iterdir())
        for split in ("train", "test")
    )


def _class_names(folders: list[Path]) -> tuple[str, ...]:
    names = {
        path.name
        for folder in folders
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith(".")
    }
    for name in names:
        if not name.isprintable():
            raise UsageError(
                f"the folder name {name!r} cannot be a class name", where="data.source"
            )
    return tuple(sorted(names))


def images_below(folder: Path) -> Iterator[Path]:
    """PNG and JPEG files, hidden ones left out."""
    if folder.is_dir():
        for path in folder.rglob("*"):
            hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
            if path.suffix.lower() in _SUFFIXES and not hidden and path.is_file():
                yield path


def open_image(path: Path) -> Image.Image:
    """Read whole and upright. Raises UsageError."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG", "JPEG")) as image:
                image.load()
                return ImageOps.exif_transpose(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UsageError("the image is too large", where=str(path)) from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UsageError(
            f"the image cannot be read: {error}",
            where=str(path),
            fix="repair it or remove it from the folder",
        ) from None


def array_of(image: Image.Image, grey: bool, size: tuple[int, int] | None) -> np.ndarray:
    """(channels, height, width) uint8."""
    import numpy as np
    from PIL import Image

    if image.mode in ("I", "I;16"):
        # 16-bit grey: PIL would clip to 255 instead of scaling.
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    image = image.convert("L" if grey else "RGB")
    if size is not None:
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    array = np.asarray(image)
    return array[None] if grey else array.transpose(2, 0, 1)


def check_sizes(paths: list[Path], arrays: list[np.ndarray]) -> None:
    """Raises UsageError for an image of another size than the first."""
    for path, array in zip(paths, arrays, strict=True):
        if array.shape != arrays[0].shape:
            (_, h, w), (_, h0, w0) = array.shape, arrays[0].shape
            raise UsageError(
                f"is {h}×{w} pixels, but {paths[0].name} is {h0}×{w0}",
                where=str(path),
                fix="set data.image_size: [height, width] to resize them all",
            )
