"""Sound as log-mel spectrograms, against an independent reference, and every way clips can be broken."""

import json
import shutil
import subprocess
import sys
import wave

import numpy as np
import pytest
import torch

from edgekd.config.schema import Augment, Data
from edgekd.data.logmel import FLOOR, LogMel
from edgekd.data.resolve import load, unlabelled_inputs
from edgekd.data.views import Views
from edgekd.errors import UsageError

RATE = 8000
RANDOM = np.random.default_rng(0)
FRONT_END = LogMel(RATE, RATE, 320, 160, 40, 20.0, 4000.0)


def say(path, samples, rate=RATE, channels=1, width=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(samples)


def tone(hertz, seconds=1.0, rate=RATE):
    t = np.arange(int(seconds * rate)) / rate
    return (np.sin(2 * np.pi * hertz * t) * 12000).astype("<i2").tobytes()


@pytest.fixture
def folder(tmp_path):
    for word, hertz in (("low", 300), ("high", 2000)):
        for i in range(8):
            say(tmp_path / "d" / word / f"{i}.wav", tone(hertz + 10 * i))
    return tmp_path / "d"


def read(folder, **audio):
    config = Data(source=f"audio:{folder.name}", audio=audio)
    return load(config, 0, folder.parent)


def refused(folder, **audio):
    with pytest.raises(UsageError) as caught:
        read(folder, **audio)
    return str(caught.value)


def test_features_are_those_of_a_short_time_fourier_transform_and_htk_triangles():
    x = RANDOM.normal(0, 0.1, RATE).astype(np.float32)
    window = torch.hann_window(320, dtype=torch.float64)
    padded = torch.nn.functional.pad(window, (0, 192))
    frames = torch.from_numpy(x).double().unfold(0, 512, 160)
    # The last windows of 320 reach where no 512 samples are left.
    power = torch.fft.rfft(frames * padded).abs().square() / 320

    def mel(f):
        return 2595 * np.log10(1 + f / 700)

    energy = np.zeros((len(power), 40))
    step = (mel(4000) - mel(20)) / 41
    for m in range(40):
        for k in range(257):
            place = (mel(k * RATE / 512) - mel(20)) / step
            corners = [700 * (10 ** ((mel(20) + (m + j) * step) / 2595) - 1) for j in range(3)]
            f = k * RATE / 512
            if m < place <= m + 1:
                weight = (f - corners[0]) / (corners[1] - corners[0])
            elif m + 1 < place < m + 2:
                weight = (corners[2] - f) / (corners[2] - corners[1])
            else:
                continue
            energy[:, m] += weight * power[:, k].numpy()
    found = FRONT_END(x)
    assert found.shape == (49, 40)
    np.testing.assert_allclose(found[: len(energy)], np.log(np.maximum(energy, FLOOR)), atol=1e-4)


def test_a_tone_is_loudest_in_the_filter_of_its_pitch():
    t = np.arange(RATE) / RATE
    loudest = [
        FRONT_END(np.sin(2 * np.pi * f * t)).mean(0).argmax() for f in (200, 500, 1500, 3000)
    ]
    assert loudest == sorted(set(loudest))


def test_silence_is_the_floor():
    assert (FRONT_END(np.zeros(RATE)) == np.float32(np.log(FLOOR))).all()


def test_clips_are_cut_or_filled_with_silence():
    assert FRONT_END.fitted(np.ones(9000)).tolist() == [1] * 8000
    short = FRONT_END.fitted(np.ones(100))
    assert (short.sum(), len(short)) == (100, 8000)


def test_a_folder_of_words(folder):
    say(folder / "_background_noise_/hum.wav", tone(50, 3))
    dataset = read(folder)
    assert dataset.classes == ("high", "low")
    assert dataset.inputs.shape == (16, 1, 49, 40)
    assert dataset.inputs.dtype == np.float32
    assert json.loads(dataset.front_end)["rate"] == RATE


def test_the_listed_clips_are_the_test_split(folder):
    (folder / "testing_list.txt").write_text("low/1.wav\nhigh/3.wav\n")
    dataset = read(folder)
    assert sorted(dataset.ids[i] for i in dataset.test) == ["high/3.wav", "low/1.wav"]
    (folder / "testing_list.txt").write_text("low/1.wav\nhigh/3.wav\nunheard/0.wav\n")
    assert len(read(folder).test) == 2
    (folder / "testing_list.txt").write_text("low/1.wav\nlow/99.wav\n")
    assert "testing_list.txt:2: there is no clip 'low/99.wav'" in refused(folder)


def test_what_comes_in_at_the_edge_of_a_shifted_spectrogram_is_what_is_near(folder):
    dataset = read(folder)
    views = Views(dataset, Augment(crop=3, views=4), 0)
    plain = dataset.tensor(dataset.train)
    for view in range(4):
        shifted = views.batch(dataset.train, view)
        assert shifted.min() >= plain.min()
        assert shifted.max() <= plain.max()


@pytest.mark.parametrize("augment", [{"flip": True}, {"colour": 0.2}])
def test_what_is_for_pictures_is_refused(folder, augment):
    with pytest.raises(UsageError, match="flip and colour are for pictures"):
        Views(read(folder), Augment(**augment), 0)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda p: say(p, tone(300, rate=16000), rate=16000), "is of 16000 Hz, and 0.wav of 8000"),
        (lambda p: say(p, tone(300), channels=2), "has 2 channels of 16 bits; should be mono"),
        (lambda p: say(p, tone(300), width=1), "has 1 channels of 8 bits"),
        (lambda p: p.write_bytes(p.read_bytes()[:4000]), "ends after"),
        (lambda p: p.write_bytes(b"RIFF"), "no WAV file"),
        (lambda p: p.write_bytes(b""), "no WAV file of PCM samples: it ends too early"),
        (lambda p: say(p, b""), "has no samples"),
        (lambda p: p.write_bytes(b"ID3" + bytes(900)), "no WAV file"),
    ],
)  # fmt: skip
def test_a_clip_that_cannot_be_used_is_named(folder, spoil, told):
    spoil(folder / "low/3.wav")
    text = refused(folder)
    assert "low/3.wav" in text
    assert told in text


@pytest.mark.parametrize(
    ("audio", "told"),
    [
        ({"high": 5000.0}, "data.audio.high"),
        ({"low": 4000.0}, "data.audio.high"),
        ({"seconds": 0.03}, "does not fit a clip of 240"),
        ({"hop": 1e-5}, "does not fit"),
        ({"mels": 200}, "filters are narrower"),
    ],
)
def test_settings_that_do_not_go_with_the_clips_are_refused(folder, audio, told):
    assert told in refused(folder, **audio)


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "d").mkdir()
    assert "has no .wav file in a sub-folder per class" in refused(tmp_path / "d")


def test_the_file_beside_the_models_makes_the_same_features_with_numpy_alone(folder, tmp_path):
    from edgekd.data import logmel

    dataset = read(folder)
    (tmp_path / "logmel.json").write_text(dataset.front_end)
    shutil.copy(logmel.__file__, tmp_path / "logmel.py")
    subprocess.run(
        [sys.executable, "-I", tmp_path / "logmel.py", tmp_path / "logmel.json",
         folder / "low/2.wav", tmp_path / "x.npy"],
        check=True,
    )  # fmt: skip
    wanted = dataset.inputs[dataset.ids.index("low/2.wav")]
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy")[0], wanted)


@pytest.mark.slow
def test_spoken_words_to_a_gated_report(tmp_path):
    import edgekd

    random = np.random.default_rng(0)
    for word, (start, end) in {"up": (300, 1500), "down": (1500, 300), "flat": (800, 800)}.items():
        for i in range(40):
            t = np.arange(RATE) / RATE
            f = np.linspace(start, end, RATE) * random.uniform(0.8, 1.2)
            x = np.sin(2 * np.pi * np.cumsum(f) / RATE) * np.hanning(RATE) + random.normal(
                0, 0.1, RATE
            )
            say(tmp_path / "words" / word / f"{i}.wav", (x * 9000 * t**0).astype("<i2").tobytes())
    train = {"epochs": 6, "batch_size": 16, "optimizer": "adamw", "learning_rate": 0.005}
    config = {
        "name": "words",
        "data": {"source": f"audio:{tmp_path / 'words'}", "audio": {"mels": 20}},
        "teacher": {"model": "zoo:resnet8", "train": train},
        "student": {"model": "zoo:dscnn-kws", "args": {"width": 16, "depth": 2}},
        "distill": {**train, "epochs": 15},
        "profile": {
            "min_seconds": 0.05,
            "max_seconds": 0.6,
            "interval": 0.5,
            "launches": 1,
            "operators": False,
        },
        "gate": {"on_inconclusive": "warn", "budgets": [{"metric": "accuracy", "min": "80 %"}]},
    }
    run = edgekd.compress(config, out=tmp_path / "run")
    assert run.gate.verdict == "pass"
    assert (run.path / "export/logmel.py").is_file()
    assert json.loads((run.path / "export/logmel.json").read_text())["mels"] == 20


def test_a_list_that_begins_with_a_byte_order_mark_and_one_that_is_no_text(folder):
    named = "\ufeffhigh/0.wav\nhigh/1.wav\nlow/0.wav\nlow/1.wav\n"
    (folder / "testing_list.txt").write_text(named, encoding="utf-8")
    assert len(read(folder).test) == 4
    (folder / "testing_list.txt").write_text(named, encoding="utf-16")
    assert "is not text in UTF-8" in refused(folder)


def test_clips_without_labels_lie_anywhere_and_are_of_the_datas_rate(folder):
    data, base = read(folder), folder.parent
    say(base / "more/a.wav", tone(300))
    say(base / "more/x/b.wav", tone(310))
    say(base / "more/_noise/c.wav", tone(320))
    found = unlabelled_inputs("audio:more", Data(), base, like=data)
    assert np.array_equal(found, data.inputs[[8, 9]])  # low/0.wav and low/1.wav
    say(base / "other/a.wav", tone(300, rate=16000), rate=16000)
    with pytest.raises(UsageError, match="unlabelled audio:other: is of another sampling rate"):
        unlabelled_inputs("audio:other", Data(), base, like=data)


def test_a_word_without_clips_is_told_not_left_out(folder):
    (folder / "mid").mkdir()
    (folder / "mid/0.flac").write_bytes(b"fLaC")
    message = refused(folder)
    assert "mid: has no .wav file" in message
    assert "begin its name with _" in message
    (folder / "mid").rename(folder / "_mid")
    assert read(folder).classes == ("high", "low")
