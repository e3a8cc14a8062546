"""`transformers serve` from PyPI, with a language model that the test trains, as the black box."""

import subprocess
import textwrap

import pytest

from edgekd.imitation.clean import clean
from edgekd.imitation.collect import collect
from edgekd.imitation.settings import Imitate
from edgekd.progress import Silent
from edgekd.teachers.tables import write_parquet
from tests.imitation.test_imitate import BAD, CLASSES, GOOD, texts
from tests.teachers.servers import environment, free_ports, running

# A Llama of 30 000 parameters that reads the last message and says a class: a few seconds of training.
MAKE = textwrap.dedent(
    """
    import json, random, sys
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder, good, bad, classes = sys.argv[1], *map(json.loads, sys.argv[2:5])
    neutral = ["film", "book", "play"]
    vocabulary = ["<pad>", "<eos>", "<unk>", "<answer>", *classes, *good, *bad, *neutral]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>", pad_token="<pad>",
        additional_special_tokens=["<answer>"],
    )
    tokenizer.chat_template = "{{ messages[-1]['content'] }} <answer>"
    torch.manual_seed(0)
    random.seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
        bos_token_id=None, eos_token_id=1, pad_token_id=0,
    ))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(150):
        lines = []
        for _ in range(32):
            label = random.randrange(2)
            words = random.choices((good, bad)[label], k=2) + random.choices(neutral, k=2)
            random.shuffle(words)
            lines.append(" ".join([*words, "<unk>", "<answer>", classes[label], "<eos>"]))
        batch = tokenizer(lines, return_tensors="pt")["input_ids"]
        labels = batch.clone()
        labels[:, :-2] = -100
        loss = model(input_ids=batch, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 1, 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(loss.item())
    """
)


@pytest.mark.slow
def test_a_language_model_behind_transformers_serve_labels_texts(tmp_path):
    import json

    programs = environment("transformers", "transformers[serving]==5.24.0", beside=True)
    (tmp_path / "make.py").write_text(MAKE)
    model = tmp_path / "model"
    made = subprocess.run(
        [programs / "python", tmp_path / "make.py", model, *map(json.dumps, (GOOD, BAD, CLASSES))],
        capture_output=True, text=True,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr[-2000:]
    pairs = texts(12)
    rows = [{"id": f"t{i}", "text": t, "label": label} for i, (t, label) in enumerate(pairs)]
    write_parquet(tmp_path / "texts.parquet", rows, tuple(CLASSES))
    (port,) = free_ports(1)
    # The command itself lies where the package is: with us, or in the environment.
    run = "from transformers.cli.transformers import main; main()"
    command = [programs / "python", "-c", run, "serve", model, "--port", str(port), "--host", "127.0.0.1",
               "--device", "cpu"]  # fmt: skip
    settings = Imitate(
        teacher=f"chat://127.0.0.1:{port}/v1", model=str(model), texts="texts.parquet", id="id",
        label="label", classes=CLASSES, votes=3, max_tokens=8, concurrency=2,
        price={"input": 1.0, "output": 1.0}, max_cost=1.0,
    )  # fmt: skip
    with running(command, f"http://127.0.0.1:{port}/health", tmp_path / "serve.log"):
        found = collect(settings, tmp_path, tmp_path / "out", Silent())
    assert found["answers"] == 36
    assert found["usable"] >= 30
    assert found["prompt_tokens"] == 36 * 6  # 5 words and <answer>
    assert found["completion_tokens"] >= 36
    summary = clean(settings, tmp_path / "out")
    assert summary["right"] == summary["known"] >= 10
