"""A teacher as the hub has them: BERT and its word pieces, trained here and saved by `save_pretrained`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def word_pieces(texts: list[str], size: int = 400) -> PreTrainedTokenizerFast:
    """BERT's tokenizer, whose vocabulary is letters and the commonest words of `texts`.

    WordPieceTrainer would choose other pieces in every run.
    """
    normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    counts = Counter(
        word
        for text in texts
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))
    )
    letters = sorted(set("".join(counts)))
    words = sorted(counts, key=lambda word: (-counts[word], word))
    pieces = dict.fromkeys([*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *words])
    vocabulary = {piece: number for number, piece in enumerate(list(pieces)[:size])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def untrained(
    texts: list[str], classes: list[str], *, dim: int = 96, depth: int = 4, heads: int = 4
) -> tuple[BertForSequenceClassification, PreTrainedTokenizerFast]:
    """A small BERT for these classes, and a tokenizer of these texts."""
    tokenizer = word_pieces(texts)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=dim,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * dim,
        max_position_embeddings=64,
        initializer_range=0.08,  # 0.02 is for widths of 768
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(classes)),
        label2id={name: number for number, name in enumerate(classes)},
    )
    return BertForSequenceClassification(config), tokenizer


def train(
    data: Path, folder: Path, *, epochs: int = 20, rate: float = 1e-3, seed: int = 0, **size: int
) -> Path:
    """Fine-tune on `data/train.jsonl`; `folder` then holds config, safetensors and tokenizer."""
    rows = [json.loads(line) for line in (data / "train.jsonl").read_text("utf-8").splitlines()]
    texts, classes = [row["text"] for row in rows], sorted({row["label"] for row in rows})
    labels = torch.tensor([classes.index(row["label"]) for row in rows])
    torch.manual_seed(seed)
    model, tokenizer = untrained(texts, classes, **size)
    steps = epochs * -(-len(rows) // 64)
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1)
    for _ in range(epochs):
        for batch in torch.randperm(len(rows)).split(64):
            inputs = tokenizer([texts[i] for i in batch], padding=True, return_tensors="pt")
            inputs.pop("token_type_ids", None)
            loss = model(**inputs, labels=labels[batch]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
