"""`audio:FOLDER`: a sub-folder per class with WAV files, as Google Speech Commands (Warden 2018, arXiv
1804.03209); `testing_list.txt` names the clips of its own test split.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.config.schema import Audio, Data
from edgekd.data.source import Samples, existing, listing_hash, source, without_labels
from edgekd.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from edgekd.data.logmel import LogMel

TEST = "testing_list.txt"


@source("audio")
class Sound:
    """Log-mel spectrograms (n, 1, frames, mels) float32, as `data.audio` says.

    Folders whose names begin with `_` or `.` are no classes: `_background_noise_` holds long recordings.
    """

    def fingerprint(self, location: Path | None) -> str:
        """Of the files' names, sizes and times of change."""
        folder = existing(location, folder=True, kind="audio")
        return listing_hash(folder, filter(Path.is_file, [*_below(folder), folder / TEST]))

    def load(self, location: Path | None, config: Data) -> Samples:
        """Every clip, cut or filled with silence to `data.audio.seconds`."""
        import numpy as np

        folder = existing(location, folder=True, kind="audio")
        paths = _clips(folder)
        if not paths:
            raise UsageError("has no .wav file in a sub-folder per class", where=str(folder))
        inputs, front_end = _features(paths, config)
        classes = tuple(sorted({path.parent.name for path in paths}))
        numbers = {name: number for number, name in enumerate(classes)}
        ids = tuple(path.relative_to(folder).as_posix() for path in paths)
        return Samples(
            inputs=inputs,
            labels=np.array([numbers[path.parent.name] for path in paths], np.int64),
            classes=classes,
            scale=1.0,
            test=_test_split(folder, ids),
            ids=ids,
            front_end=front_end,
        )

    def unlabelled(self, location: Path | None, config: Data) -> Samples:
        """Every clip below the folder, in whatever sub-folders or in none."""
        folder = existing(location, folder=True, kind="audio")
        paths = _below(folder)
        if not paths:
            raise UsageError("has no .wav file", where=str(folder))
        inputs, front_end = _features(paths, config)
        return without_labels(inputs, 1.0, front_end)


def _features(paths: list[Path], config: Data) -> tuple[np.ndarray, str]:
    """Spectrograms (n, 1, frames, mels) float32, and how they are made, as the text of a logmel.json."""
    import numpy as np

    from edgekd.data.logmel import read_wav

    front_end: LogMel | None = None
    features = []
    for path in paths:
        try:
            clip, rate = read_wav(str(path))
        except ValueError as error:
            raise UsageError(str(error), where=str(path)) from None
        except OSError as error:
            raise UsageError(f"cannot be read: {error.strerror}", where=str(path)) from None
        if front_end is None:
            front_end = _front_end(config.audio, rate)
        if rate != front_end.rate:
            raise UsageError(
                f"is of {rate} Hz, and {paths[0].name} of {front_end.rate}",
                where=str(path),
                fix="resample all clips to one rate",
            )
        features.append(front_end(front_end.fitted(clip)))
    assert front_end is not None
    return np.stack(features)[:, None], front_end.text()


def _below(folder: Path) -> list[Path]:
    """Every clip, but those in or called what begins with `_` or `.`."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() == ".wav"
        and not any(part.startswith(("_", ".")) for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def _clips(folder: Path) -> list[Path]:
    """Raises UsageError for the folder of a word that has no clip: the word would be missing unseen."""
    found: list[Path] = []
    for word in sorted(folder.iterdir()):
        if not word.is_dir() or word.name.startswith(("_", ".")):
            continue
        clips = [
            path
            for path in word.iterdir()
            if path.suffix.lower() == ".wav" and not path.name.startswith(".")
        ]
        if not clips:
            raise UsageError(
                "has no .wav file",
                where=str(word),
                fix="every sub-folder is a class: convert its clips, or begin its name with _",
            )
        found += sorted(clips)
    return found


def _front_end(audio: Audio, rate: int) -> LogMel:
    """Raises UsageError for settings that do not go with the rate."""
    from edgekd.data.logmel import LogMel

    high = rate / 2 if audio.high is None else audio.high
    if not audio.low < high <= rate / 2:
        raise UsageError(
            f"the filters go from {audio.low:g} to {high:g} Hz; clips of {rate} Hz have up to "
            f"{rate / 2:g}",
            where="data.audio.high",
        )
    length, window, hop = (round(s * rate) for s in (audio.seconds, audio.window, audio.hop))
    if not hop >= 1 or not 2 <= window <= length:
        raise UsageError(
            f"a window of {window} samples every {hop} does not fit a clip of {length}",
            where="data.audio.window",
        )
    front_end = LogMel(rate, length, window, hop, audio.mels, float(audio.low), float(high))
    empty = int((front_end.filters.sum(axis=1) == 0).sum())
    if empty:
        raise UsageError(
            f"{empty} of {audio.mels} filters are narrower than the {rate / front_end.transform:.0f} Hz "
            "that a window tells apart",
            where="data.audio.mels",
            fix="fewer mels, or a longer window",
        )
    return front_end


def _test_split(folder: Path, ids: tuple[str, ...]) -> np.ndarray | None:
    """Marks the clips of testing_list.txt, where there is one; it may name words that are not there."""
    import numpy as np

    path = folder / TEST
    if not path.is_file():
        return None
    known = set(ids)
    try:
        named = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise UsageError("is not text in UTF-8", where=str(path)) from None
    for number, line in enumerate(named, 1):
        word = folder / Path(line.strip()).parent.name
        if line.strip() and line.strip() not in known and word.is_dir():
            raise UsageError(f"there is no clip {line.strip()!r:.80}", where=f"{path}:{number}")
    wanted = {line.strip() for line in named}
    return np.array([name in wanted for name in ids])
