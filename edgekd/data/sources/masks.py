"""`masks:FOLDER`: `images/` and `masks/` of the same names, or `train/` and `test/` with both in each.

Masks are 8-bit PNG, grey or with a palette, of class numbers, 255 where a pixel has no class, as in Pascal
VOC (Everingham et al. 2010) and Cityscapes. `classes.txt` names the classes, one a line, from 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.config.schema import Data
from edgekd.data.source import Samples, existing, listing_hash, source
from edgekd.data.sources.folder import (
    GREY,
    array_of,
    check_sizes,
    images_below,
    open_image,
)
from edgekd.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

NO_CLASS = 255


@source("masks")
class Masks:
    """Images as uint8 (n, channels, height, width), labels (n, height, width) int16, −1 for no class."""

    def fingerprint(self, location: Path | None) -> str:
        """Of the files' names, sizes and times of change."""
        folder = existing(location, folder=True, kind="masks")
        paths = [*sorted(images_below(folder)), folder / "classes.txt"]
        return listing_hash(folder, filter(Path.is_file, paths))

    def load(self, location: Path | None, config: Data) -> Samples:
        """Images are resized to `data.image_size` bilinearly, masks to the nearest pixel."""
        import numpy as np

        folder = existing(location, folder=True, kind="masks")
        classes = _class_names(folder / "classes.txt")
        splits: tuple[str, ...] = ("",)
        if (folder / "train/images").is_dir():
            splits = ("train", "test")
            if not (folder / "test/images").is_dir():
                raise UsageError(
                    "has train/images/ and no test/images/",
                    where=str(folder),
                    fix="add test/, or put images/ and masks/ into the folder itself: edgekd splits them",
                )
        files = [
            (path, _mask_of(path, folder / split), split == "test")
            for split in splits
            for path in sorted(images_below(folder / split / "images"))
        ]
        if not files:
            raise UsageError(
                "has no PNG or JPEG image in images/, or in train/images/ and test/images/",
                where=str(folder),
            )
        images = [open_image(path) for path, _, _ in files]
        grey = all(image.mode in GREY for image in images)
        masks = [
            _mask(path, image.size, len(classes), config.image_size)
            for (_, path, _), image in zip(files, images, strict=True)
        ]
        arrays = [array_of(image, grey, config.image_size) for image in images]
        check_sizes([path for path, _, _ in files], arrays)
        labels = np.stack(masks)
        seen = set(np.unique(labels).tolist())
        unseen = [name for number, name in enumerate(classes) if number not in seen]
        if unseen:
            raise UsageError(
                f"no pixel of any mask is of class {unseen[0]!r}"
                + (", and some are 255, which is no class" if -1 in seen else ""),
                where=str(folder),
                fix="number the classes from 0 in the masks (a mask of 0 and 255 is one of 0 and 1), or take "
                "the class out of classes.txt",
            )
        return Samples(
            inputs=np.stack(arrays),
            labels=labels,
            classes=classes,
            scale=255.0,
            test=np.array([test for _, _, test in files]) if len(splits) == 2 else None,
            ids=tuple(path.relative_to(folder).as_posix() for path, _, _ in files),
            task="segmentation",
        )


def _class_names(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise UsageError(
            "no such file", where=str(path), fix="write the name of every class in it, one a line"
        )
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines())
    except UnicodeDecodeError:
        raise UsageError("is not text in UTF-8", where=str(path)) from None
    while names and not names[-1]:
        names = names[:-1]
    for number, name in enumerate(names, 1):
        if not name or not name.isprintable() or names.index(name) < number - 1:
            raise UsageError(
                f"{name!r} cannot be the name of a class: each line has one, all different",
                where=f"{path}:{number}",
            )
    if not 2 <= len(names) <= NO_CLASS:
        raise UsageError(f"names {len(names)} classes; should name 2 to 255", where=str(path))
    return names


def _mask_of(image: Path, folder: Path) -> Path:
    below = image.relative_to(folder / "images").with_suffix(".png")
    path = folder / "masks" / below
    if not path.is_file():
        raise UsageError(f"has no mask: {path} is not there", where=str(image))
    return path


def _mask(
    path: Path, size: tuple[int, int], classes: int, resized: tuple[int, int] | None
) -> np.ndarray:
    """(height, width) int16; `size` is (width, height) of its image."""
    import numpy as np
    from PIL import Image

    mask = open_image(path)
    if mask.mode not in ("L", "P"):
        raise UsageError(
            f"is a picture of mode {mask.mode}; should be 8-bit grey or palette PNG of class numbers",
            where=str(path),
        )
    if mask.size != size:
        raise UsageError(
            f"is {mask.size[1]}×{mask.size[0]} pixels, its image {size[1]}×{size[0]}",
            where=str(path),
        )
    if resized is not None:
        mask = mask.resize((resized[1], resized[0]), Image.Resampling.NEAREST)
    labels = np.asarray(mask).astype(np.int16)
    labels[labels == NO_CLASS] = -1
    if labels.max() >= classes:
        raise UsageError(
            f"has class {labels.max()}, and classes.txt names {classes} (from 0; 255 is no class)",
            where=str(path),
        )
    return labels
