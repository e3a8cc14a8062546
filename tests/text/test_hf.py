"""Folders of transformers as teachers: what they know is what transformers, asked directly, says."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertForSequenceClassification, BertModel

from edgekd.errors import UsageError
from edgekd.models import role
from tests.teachers.runs import teacher_stage


def refused(config, folder):
    with pytest.raises(UsageError) as caught:
        teacher_stage(config, folder)
    return str(caught.value)


def asked(folder, texts):
    """Logits by transformers' own tokenizer, padding and mask."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        return model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits


def test_it_says_what_transformers_says(bert, config, tmp_path):
    teacher, run = teacher_stage(config(), tmp_path / "run")[:2]
    dataset = _data(config(), tmp_path)
    found = teacher.answers(dataset, dataset.test[:8])
    expected = asked(bert.folder, [dataset.texts[i] for i in dataset.test[:8]])
    assert torch.allclose(torch.from_numpy(found), expected, atol=1e-5)
    module = role.load(run, "teacher", tmp_path)
    assert torch.equal(module(dataset.tensor(dataset.test[:8])).detach(), torch.from_numpy(found))


def test_it_is_opened_from_the_run_when_the_folder_is_gone(bert, config, tmp_path):
    folder = shutil.copytree(bert.folder, tmp_path / "teacher")
    _, run = teacher_stage(config(teacher={"model": f"hf:{folder}"}), tmp_path / "run")[:2]
    before = torch.cat([p.flatten() for p in role.load(run, "teacher", tmp_path).parameters()])
    shutil.rmtree(folder)
    after = torch.cat([p.flatten() for p in role.load(run, "teacher", tmp_path).parameters()])
    assert torch.equal(before, after)


def test_classes_in_another_order_are_put_into_the_datas(bert, config, tmp_path):
    names = ("positive", "mixed", "negative")
    folder = bert.save(tmp_path / "other", names)
    settings = config(teacher={"model": f"hf:{folder}"})
    teacher, _ = teacher_stage(settings, tmp_path / "run")[:2]
    dataset = _data(settings, tmp_path)
    found = torch.from_numpy(teacher.answers(dataset, dataset.test[:4]))
    expected = asked(folder, [dataset.texts[i] for i in dataset.test[:4]])
    columns = [names.index(name) for name in dataset.classes]
    assert columns != [0, 1, 2]
    assert torch.allclose(found, expected[:, columns], atol=1e-5)


def test_other_names_of_classes_are_refused_and_can_be_given(bert, config, tmp_path):
    folder = bert.save(tmp_path / "other", ("neutral", "bad", "good"))
    message = refused(config(teacher={"model": f"hf:{folder}"}), tmp_path / "run")
    assert "'mixed'" in message
    assert "'neutral', 'bad', 'good'" in message
    assert "teacher.args" in message
    named = {"model": f"hf:{folder}", "args": {"classes": ["mixed", "negative", "positive"]}}
    teacher_stage(config(teacher=named), tmp_path / "run")


def test_labels_without_names_are_taken_to_be_in_order(bert, config, tmp_path):
    folder = bert.save(tmp_path / "other", ("LABEL_0", "LABEL_1", "LABEL_2"))
    teacher_stage(config(teacher={"model": f"hf:{folder}"}), tmp_path / "run")
    folder = bert.save(tmp_path / "more", ("LABEL_0", "LABEL_1"))
    message = refused(config(teacher={"model": f"hf:{folder}"}), tmp_path / "run2")
    assert "the data has 3 classes" in message


def test_weights_of_another_size_than_the_configuration_says(bert, config, tmp_path):
    folder = shutil.copytree(bert.folder, tmp_path / "teacher")
    about = json.loads((folder / "config.json").read_text())
    path = folder / "config.json"
    path.write_text(json.dumps(about | {"intermediate_size": about["intermediate_size"] * 2}))
    message = refused(config(teacher={"model": f"hf:{folder}"}), tmp_path / "run")
    assert "weights are of different networks" in message
    assert "intermediate.dense" in message
    path.write_text(json.dumps(about | {"problem_type": "regression"}))
    message = refused(config(teacher={"model": f"hf:{folder}"}), tmp_path / "run2")
    assert "is for regression" in message


def test_weights_that_are_not_numbers_name_the_folder(bert, config, tmp_path):
    folder = shutil.copytree(bert.folder, tmp_path / "teacher")
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    message = refused(config(teacher={"model": f"hf:{folder}"}), tmp_path / "run")
    assert f"hf:{folder}" in message
    assert "'classifier.bias' has values that are not finite" in message


def test_a_folder_that_is_not_there_is_the_teachers_mistake(tmp_path):
    from edgekd import api

    value = {"data": {"source": "text:reviews.csv"}, "teacher": {"model": "hf:nowhere"}}
    with pytest.raises(UsageError) as caught:
        api.compress(value | {"student": "zoo:bert"}, out=tmp_path / "run")
    assert caught.value.where == "teacher.model"


def test_a_name_of_a_hub_is_refused(bert, config, tmp_path):
    data = config()["data"] | {"text": {"tokenizer": str(bert.folder)}}
    message = refused(config(teacher={"model": "hf:org/name"}, data=data), tmp_path / "run")
    assert "no such folder" in message
    assert "nothing is downloaded" in message


def test_pickles_are_refused_by_name(bert, config, tmp_path):
    folder = shutil.copytree(bert.folder, tmp_path / "teacher")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = refused(config(teacher={"model": f"hf:{folder}"}), tmp_path / "run")
    assert "no model.safetensors" in message
    assert "pytorch_model.bin may hold code" in message


def test_damaged_weights_and_folders_without_configuration_are_refused(bert, config, tmp_path):
    folder = shutil.copytree(bert.folder, tmp_path / "teacher")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    settings = config(teacher={"model": f"hf:{folder}"})
    assert "transformers cannot open it" in refused(settings, tmp_path / "run")
    (folder / "config.json").unlink()
    assert "no config.json" in refused(settings, tmp_path / "run")


def test_code_of_the_folders_is_not_run(bert, config, tmp_path):
    folder = shutil.copytree(bert.folder, tmp_path / "teacher")
    about = json.loads((folder / "config.json").read_text())
    about |= {
        "model_type": "mine",
        "auto_map": {
            "AutoConfig": "mine.Config",
            "AutoModelForSequenceClassification": "mine.Model",
        },
    }
    (folder / "config.json").write_text(json.dumps(about))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    message = refused(config(teacher={"model": f"hf:{folder}"}), tmp_path / "run")
    assert "transformers cannot open it" in message
    assert not (tmp_path / "ran").exists()


def test_a_network_without_its_classifier_is_refused(bert, config, tmp_path):
    folder = shutil.copytree(bert.folder, tmp_path / "teacher")
    BertModel.from_pretrained(bert.folder).save_pretrained(folder)
    message = refused(config(teacher={"model": f"hf:{folder}"}), tmp_path / "run")
    assert "'classifier.bias'" in message
    assert "fine-tune it" in message


def test_another_tokenizer_than_the_teachers_is_refused(bert, config, tmp_path):
    other = bert.save(tmp_path / "other", words=["quite another set of words", "for another task"])
    data = config()["data"] | {"text": {"tokenizer": str(other), "max_length": 24}}
    message = refused(config(data=data), tmp_path / "run")
    assert "tokenizer.json is another one" in message
    assert "data.text.tokenizer" in message


def test_the_same_tokenizer_with_another_length_is_the_same(bert, config, tmp_path):
    about = json.loads((bert.folder / "tokenizer.json").read_text())
    about["truncation"] = None
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(about))
    data = config()["data"] | {"text": {"tokenizer": str(path), "max_length": 24}}
    teacher_stage(config(data=data), tmp_path / "run")


def test_longer_texts_and_another_padding_than_the_teachers_are_refused(bert, config, tmp_path):
    data = config()["data"] | {"text": {"max_length": 65}}
    message = refused(config(data=data), tmp_path / "run")
    assert "takes 64 tokens at most, not 65" in message
    assert "data.text.max_length" in message
    folder = bert.save(tmp_path / "other", pad_token_id=3)
    message = refused(config(teacher={"model": f"hf:{folder}"}), tmp_path / "run")
    assert "pads with id 3, and the tokenizer with 0" in message


def test_a_student_with_fewer_tokens_than_the_tokenizer_is_refused(bert, config, tmp_path):
    student = {"model": "zoo:bert", "args": {"vocabulary": 50}}
    message = refused(config(student=student), tmp_path / "run")
    assert "student: knows 50 tokens, and the tokenizer has" in message


def test_data_without_texts_is_refused(config, tmp_path):
    settings = config(data={"source": "digits"}, student={"model": "zoo:mlp"})
    assert "reads texts" in refused(settings, tmp_path / "run")


def _data(settings, base):
    from edgekd import api
    from edgekd.data.resolve import load

    resolved, _ = api.resolve(settings)
    return load(resolved.data, 0, base)
