"""The forward pass of a BERT encoder in numpy, over memory-mapped weights.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers" (2018), with the post-layer normalisation of
"Attention Is All You Need" (2017). Dropout and the pooler are left out: they play no part in sentence embeddings.
"""

import json
import mmap
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]
Ids: TypeAlias = npt.NDArray[np.int64]

_LAYER_NORM_EPS = 1e-12
_CACHED_ROWS = 64
_SQRT_HALF = np.float32(0.5**0.5)


def map_safetensors(path: Path) -> dict[str, Floats]:
    """The float32 tensors of a safetensors file, as read-only views of the mapped file.

    The format: 8 bytes little-endian length, that many bytes of JSON `{name: {dtype, shape, data_offsets}}`, then the
    data (github.com/huggingface/safetensors, "Format"). Its Python package copies each tensor into memory; mapped
    views cost only the pages that are read, and are shared between processes.
    """
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    data_start = 8 + int.from_bytes(mapped[:8], "little")
    header = json.loads(mapped[8:data_start])
    header.pop("__metadata__", None)
    return {
        name: np.frombuffer(
            mapped,
            dtype="<f4",
            count=(tensor["data_offsets"][1] - tensor["data_offsets"][0]) // 4,
            offset=data_start + tensor["data_offsets"][0],
        ).reshape(tensor["shape"])
        for name, tensor in header.items()
        if tensor["dtype"] == "F32"
    }


def erf(x: Floats) -> Floats:
    """The error function, to within 6e-7 in float32.

    Abramowitz & Stegun, "Handbook of Mathematical Functions", 7.1.26 (Hastings): for x ≥ 0, with t = 1 / (1 + p·x),
    erf(x) = 1 - (a₁t + a₂t² + a₃t³ + a₄t⁴ + a₅t⁵)·exp(-x²), |error| ≤ 1.5e-7; odd for x < 0.
    """
    magnitude = np.abs(x)
    t = np.float32(1) / (np.float32(1) + np.float32(0.3275911) * magnitude)
    polynomial = t * np.float32(1.061405429)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        polynomial += np.float32(coefficient)
        polynomial *= t
    np.square(magnitude, out=magnitude)
    np.negative(magnitude, out=magnitude)
    np.exp(magnitude, out=magnitude)
    magnitude *= polynomial
    np.subtract(np.float32(1), magnitude, out=magnitude)
    return np.copysign(magnitude, x, out=magnitude)


def gelu(x: Floats) -> Floats:
    """x·Φ(x), the exact form with erf (Hendrycks & Gimpel, 2016), as the model was trained with."""
    result = np.empty_like(x)
    rows, out = x.reshape(-1, x.shape[-1]), result.reshape(-1, x.shape[-1])
    # A dozen passes over the array: over pieces that stay in the cache they take half the time.
    for start in range(0, len(rows), _CACHED_ROWS):
        block = rows[start : start + _CACHED_ROWS]
        gate = erf(block * _SQRT_HALF)
        gate += np.float32(1)
        gate *= block
        np.multiply(gate, np.float32(0.5), out=out[start : start + _CACHED_ROWS])
    return result


def softmax(x: Floats) -> Floats:
    """Over the last axis, in place."""
    x -= x.max(axis=-1, keepdims=True)
    np.exp(x, out=x)
    x /= x.sum(axis=-1, keepdims=True)
    return x


class Bert:
    """A BERT encoder, ready to run.

    Args:
        weights: a safetensors file with the tensor names of `transformers.BertModel`.
        config: its `config.json`.
    """

    def __init__(self, weights: Path, config: Path) -> None:
        settings = json.loads(config.read_text())
        self.hidden_size: int = settings["hidden_size"]
        self._heads: int = settings["num_attention_heads"]
        self._layers: int = settings["num_hidden_layers"]
        self._weights = map_safetensors(weights)

    def forward(self, ids: Ids, mask: Ids) -> Floats:
        """The last hidden states.

        Args:
            ids: token ids, (batch, tokens).
            mask: 1 where a token is, 0 where padding is; the same shape.

        Returns:
            (batch, tokens, hidden_size); what stands at padding has no meaning.
        """
        tokens = ids.shape[1]
        hidden = (
            self._weights["embeddings.word_embeddings.weight"][ids]
            + self._weights["embeddings.position_embeddings.weight"][:tokens]
            + self._weights["embeddings.token_type_embeddings.weight"][0]
        )
        hidden = self._layer_norm(hidden, "embeddings.LayerNorm")
        blocked = np.where(mask[:, None, None, :] == 0, np.float32(-1e9), np.float32(0))
        for index in range(self._layers):
            layer = f"encoder.layer.{index}."
            attended = self._dense(self._attention(hidden, blocked, layer), layer + "attention.output.dense")
            hidden = self._layer_norm(hidden + attended, layer + "attention.output.LayerNorm")
            inner = gelu(self._dense(hidden, layer + "intermediate.dense"))
            hidden = self._layer_norm(hidden + self._dense(inner, layer + "output.dense"), layer + "output.LayerNorm")
        return hidden

    def _attention(self, hidden: Floats, blocked: Floats, layer: str) -> Floats:
        batch, tokens, size = hidden.shape
        head_size = size // self._heads

        def heads(name: str) -> Floats:
            projected = self._dense(hidden, f"{layer}attention.self.{name}")
            return projected.reshape(batch, tokens, self._heads, head_size).transpose(0, 2, 1, 3)

        scores = heads("query") @ heads("key").swapaxes(-1, -2)
        scores *= np.float32(head_size**-0.5)
        scores += blocked
        mixed = softmax(scores) @ heads("value")
        return np.ascontiguousarray(mixed.transpose(0, 2, 1, 3)).reshape(batch, tokens, size)

    def _dense(self, x: Floats, name: str) -> Floats:
        # One large product over all tokens of the batch: numpy would run a stack of matrices one by one.
        flat: Floats = x.reshape(-1, x.shape[-1]) @ self._weights[name + ".weight"].T
        flat += self._weights[name + ".bias"]
        return flat.reshape(*x.shape[:-1], -1)

    def _layer_norm(self, x: Floats, name: str) -> Floats:
        x -= x.mean(axis=-1, keepdims=True)
        variance = np.square(x).mean(axis=-1, keepdims=True)
        x /= np.sqrt(variance + np.float32(_LAYER_NORM_EPS))
        x *= self._weights[name + ".weight"]
        x += self._weights[name + ".bias"]
        return x
