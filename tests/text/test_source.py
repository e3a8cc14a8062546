"""Texts in files as token ids: what the tokenizers package, asked directly, gives."""

import csv
import json

import numpy as np
import pytest
from tokenizers import Tokenizer

from edgekd.config.schema import Data
from edgekd.data.resolve import fingerprint, load, unlabelled_inputs
from edgekd.data.views import Views
from edgekd.errors import UsageError


@pytest.fixture
def read(bert, tmp_path):
    """Load rows that are written to a file of this name."""

    def read(rows, name="reviews.csv", **text):
        path = tmp_path / name
        if name.endswith(".csv"):
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]) if rows else ["text", "label"])
                writer.writeheader()
                writer.writerows(rows)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        text = {"tokenizer": str(bert.folder), "max_length": 24} | text
        return load(Data(source=f"text:{path}", text=text), 0, tmp_path)

    return read


def refused(read, *args, **text):
    with pytest.raises(UsageError) as caught:
        read(*args, **text)
    return str(caught.value)


@pytest.mark.parametrize("name", ["reviews.csv", "reviews.jsonl"])
def test_ids_are_the_tokenizers_padded_to_the_longest_length(bert, read, name):
    data = read(bert.rows, name)
    tokenizer = Tokenizer.from_file(str(bert.folder / "tokenizer.json"))
    assert data.inputs.shape == (len(bert.rows), 24)
    for i in (0, 5, 17):
        ids = tokenizer.encode(bert.texts[i]).ids
        assert data.inputs[i].tolist() == ids + [0] * (24 - len(ids))
        assert data.texts[i] == bert.texts[i]
        assert data.classes[data.labels[i]] == bert.rows[i]["label"]
    tokens = data.input.tokens
    assert (tokens.vocabulary, tokens.padding) == (tokenizer.get_vocab_size(), 0)


def test_longer_texts_are_cut_and_keep_their_last_special_token(bert, read):
    data = read(bert.rows, max_length=6)
    assert (data.inputs[:, 0] == 2).all()  # [CLS]
    assert (data.inputs[:, -1] == 3).all()  # [SEP]


def test_a_folder_has_its_own_test_split(bert, tmp_path):
    text = {"tokenizer": str(bert.folder)}
    data = load(Data(source=f"text:{bert.data}", text=text), 0, tmp_path)
    assert data.test.tolist() == list(range(240, 360))
    assert data.input.shape == (128,)


def test_whole_numbers_in_a_csv_are_in_the_order_of_numbers(bert, read):
    rows = [{"text": t, "label": i % 11} for i, t in enumerate(bert.texts)]
    assert read(rows).classes == tuple(map(str, range(11)))


def test_batches_are_int64_and_never_augmented(bert, read):
    data = read(bert.rows)
    views = Views(data, Data().augment, 0)
    batch = views.batch(data.train[:4], 3)
    assert str(batch.dtype) == "torch.int64"
    assert np.array_equal(batch.numpy(), data.inputs[data.train[:4]])
    assert np.array_equal(data.tensor(data.train[:4]).numpy(), batch.numpy())
    assert views.count == 1


def test_other_columns_are_named(bert, read):
    rows = [{"review": row["text"], "stars": row["label"]} for row in bert.rows]
    assert read(rows, column="review", label="stars").texts[0] == bert.texts[0]
    message = refused(read, rows)
    assert "no column 'text'" in message
    assert "data.text.column" in message
    assert "review, stars" in message
    assert "data.text.label" in refused(read, rows, column="review")


@pytest.mark.parametrize("bad", ["", "   ", None, 7])
def test_empty_texts_are_refused_by_row(bert, read, bad):
    rows = [dict(row) for row in bert.rows[:40]]
    rows[2]["text"] = bad
    assert "the text of row 3 is empty or no text" in refused(read, rows, "reviews.jsonl")


def test_half_a_surrogate_pair_is_refused_by_row(bert, read):
    rows = [dict(row) for row in bert.rows[:40]]
    rows[6]["text"] = "so \ud83d good"
    assert "the text of row 7 has half of a surrogate pair" in refused(read, rows, "reviews.jsonl")
    rows[6]["text"] = "so \U0001f600 good"
    assert len(read(rows, "reviews.jsonl").texts) == 40


def test_files_of_other_encodings_and_shapes_are_refused_in_words(bert, read, tmp_path):
    path = tmp_path / "other.jsonl"
    lines = "".join(json.dumps(row) + "\n" for row in bert.rows)
    text = {"tokenizer": str(bert.folder)}
    data = Data(source=f"text:{path}", text=text)
    path.write_text(f"\ufeff{lines}")
    assert len(load(data, 0, tmp_path).texts) == len(bert.rows)
    path.write_bytes(lines.encode() + '{"text": "caf\xe9", "label": "mixed"}\n'.encode("latin-1"))
    with pytest.raises(UsageError, match="is not UTF-8: byte 0xe9"):
        load(data, 0, tmp_path)
    path.write_text("")
    with pytest.raises(UsageError, match="is empty"):
        load(data, 0, tmp_path)
    csv = tmp_path / "twice.csv"
    csv.write_text("text,label,text\na,b,c\n")
    with pytest.raises(UsageError, match="has two columns 'text'"):
        load(Data(source=f"text:{csv}", text=text), 0, tmp_path)


def test_rows_without_label_no_rows_and_other_files_are_refused(bert, read):
    rows = [dict(row) for row in bert.rows[:40]]
    rows[4]["label"] = ""
    assert "row 5 has no label" in refused(read, rows)
    assert "has no rows" in refused(read, [])
    assert ".csv, .jsonl" in refused(read, rows, "reviews.txt")


def test_texts_without_labels_need_no_column_of_them(bert, read, tmp_path):
    data = read(bert.rows)
    (tmp_path / "more.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in bert.texts[:9])
    )
    text = {"tokenizer": str(bert.folder), "max_length": 24}
    config = Data(source="text:reviews.csv", text=text)
    found = unlabelled_inputs("text:more.jsonl", config, tmp_path, like=data)
    assert np.array_equal(found, data.inputs[:9])


def test_a_folder_without_a_test_file_is_refused(bert, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/train.csv").write_text("text,label\na,b\n")
    text = {"tokenizer": str(bert.folder)}
    with pytest.raises(UsageError, match="0 files for the test split"):
        load(Data(source="text:d", text=text), 0, tmp_path)


def test_without_a_tokenizer_or_with_none_that_can_be_read_it_is_refused(bert, read, tmp_path):
    assert "need a tokenizer" in refused(read, bert.rows, tokenizer=None)
    assert "no such file or folder" in refused(read, bert.rows, tokenizer="nowhere")
    (tmp_path / "empty").mkdir()
    assert "no tokenizer.json" in refused(read, bert.rows, tokenizer=str(tmp_path / "empty"))
    bad = tmp_path / "tokenizer.json"
    bad.write_text('{"model": 3}')
    assert "is no tokenizer" in refused(read, bert.rows, tokenizer=str(bad))
    about = json.loads((bert.folder / "tokenizer.json").read_text())
    renamed = json.dumps(about).replace("[PAD]", "[NIL]")
    bad.write_text(renamed)
    assert "no padding token" in refused(read, bert.rows, tokenizer=str(bad))


def test_the_fingerprint_is_also_that_of_the_tokenizer(bert, tmp_path):
    copy = tmp_path / "tokenizer.json"
    copy.write_bytes((bert.folder / "tokenizer.json").read_bytes())
    data = Data(source=f"text:{bert.data}", text={"tokenizer": "tokenizer.json"})
    before = fingerprint(data, tmp_path)
    copy.write_text(copy.read_text().replace("hinge", "xxxxx"))
    assert fingerprint(data, tmp_path) != before


def test_ids_are_neither_mixed_nor_normalised(bert, tmp_path):
    text = {"tokenizer": str(bert.folder)}
    data = Data(source=f"text:{bert.data}", text=text, mean=[0.0], std=[1.0])
    with pytest.raises(UsageError, match="not normalised"):
        load(data, 0, tmp_path)
    dataset = load(Data(source=f"text:{bert.data}", text=text), 0, tmp_path)
    with pytest.raises(UsageError, match="cannot be mixed"):
        Views(dataset, Data(augment={"mixup": 0.5}).augment, 0)
