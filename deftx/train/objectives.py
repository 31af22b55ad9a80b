"""The two losses, each with its data: masked language modelling on token blocks, classification on encoded sentences.

An objective turns a batch of example numbers into tensors, a batch into its summed loss, and a model into its
validation metrics. Losses are computed only where there are labels: the LM head sees masked positions only. How weights
are stepped is in `loop`; every random choice is a function of (seed, step).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from deftx.config import Metric
from deftx.data.blocks import Blocks
from deftx.evaluate.metrics import score
from deftx.kernels.linear_cross_entropy import head_loss, widened
from deftx.models.parameters import base_of

Batch = dict[str, Tensor]
Integers = NDArray[np.int32]

IGNORED = -100
_VALIDATION_BATCH = 64
_VALIDATION_BLOCKS = 8  # the logits of 64 blocks would take more memory than training does


class Objective(ABC):
    """What a phase minimises, and by which validation metric its best checkpoint is chosen."""

    metric: str
    higher_is_better: bool

    @property
    @abstractmethod
    def examples(self) -> int:
        """How many training examples (or blocks) there are."""

    def narrow(self, model: Any) -> None:  # noqa: B027
        """Make a model compute, in training, no more than the loss reads."""

    @abstractmethod
    def batch(self, numbers: NDArray[np.int64], generator: np.random.Generator) -> Batch:
        """The training examples of these numbers as CPU tensors, `labels` among them."""

    @abstractmethod
    def loss(self, model: Any, batch: Batch) -> Tensor:
        """The loss summed over the labelled positions of a batch: a scalar."""

    @abstractmethod
    def validate(self, model: Any, device: torch.device) -> dict[str, float]:
        """Validation metrics of a model in evaluation mode; `self.metric` is among them."""

    def located(self, batch: Batch) -> Batch:
        """A batch with what the CPU works out, so that a GPU is not waited for: a mask only where there is padding.

        The mask gets the shape that attention takes, (examples, 1, 1, tokens), and is taken by transformers as it is.
        """
        mask = batch.get("attention_mask")
        if mask is None or mask.dim() > 2:
            return batch
        others = {key: tensor for key, tensor in batch.items() if key != "attention_mask"}
        return others if bool(mask.all()) else {**others, "attention_mask": mask[:, None, None, :].bool()}

    @staticmethod
    def labelled(batch: Batch) -> int:
        """How many labelled positions a batch has."""
        return int((batch["labels"] != IGNORED).sum())


@dataclass(frozen=True)
class Masking:
    """How tokens are masked: `share` of those that are not special; 80 % <mask>, 10 % random, 10 % kept."""

    share: float
    mask_id: int
    vocabulary: int
    special: frozenset[int]
    word_starts: NDArray[np.bool_] | None = None
    """For whole-word masking: whether a token id begins a word, (vocabulary,)."""

    def mask(self, blocks: Integers, generator: np.random.Generator) -> Batch:
        """Masked inputs and labels.

        Args:
            blocks: (n, block) int32 token ids.

        Returns:
            `input_ids` and `labels` (-100 where nothing is to be predicted), each (n, block) int64.
        """
        plain = ~np.isin(blocks, list(self.special))
        chosen = self._chosen(blocks, plain, generator)
        action = generator.random(blocks.shape)
        masked = np.where(chosen & (action < 0.8), self.mask_id, blocks)
        random = generator.integers(0, self.vocabulary, blocks.shape)
        masked = np.where(chosen & (action >= 0.9), random, masked)
        labels = np.where(chosen, blocks, IGNORED)
        return {"input_ids": _long(masked), "labels": _long(labels)}

    def _chosen(self, blocks: Integers, plain: NDArray[np.bool_], generator: np.random.Generator) -> NDArray[np.bool_]:
        if self.word_starts is None:
            return (generator.random(blocks.shape) < self.share) & plain
        # every token takes the draw of the word it belongs to
        word = np.cumsum(self.word_starts[blocks] | ~plain, axis=1, dtype=np.int64)
        draws = generator.random((blocks.shape[0], blocks.shape[1] + 1))
        return (np.take_along_axis(draws, word, axis=1) < self.share) & plain


class MaskedLanguageModelling(Objective):
    """MLM on token blocks; chosen by the validation loss under one fixed mask."""

    metric, higher_is_better = "valid_loss", False

    def __init__(self, blocks: Blocks, masking: Masking, pad_id: int, mask_seed: int) -> None:
        """Bind the data.

        Args:
            blocks: training and validation blocks, int32.
            pad_id: the token that attention leaves out.
            mask_seed: of the validation mask, the same for every phase on this text.
        """
        self._blocks, self._masking, self._pad = blocks.train, masking, pad_id
        self._valid = self._masked(blocks.valid, np.random.default_rng([mask_seed, 7]))

    @property
    def examples(self) -> int:
        """How many training blocks there are."""
        return len(self._blocks)

    def batch(self, numbers: NDArray[np.int64], generator: np.random.Generator) -> Batch:
        """Freshly masked blocks, cut after the longest one."""
        blocks = self._blocks[numbers]
        longest = int((blocks != self._pad).sum(axis=1).max())
        return self._masked(blocks[:, :longest], generator)

    def loss(self, model: Any, batch: Batch) -> Tensor:
        """Cross-entropy summed over the masked positions."""
        if "places" not in batch:
            batch = self.located(batch)
        hidden = base_of(model)(batch["input_ids"], attention_mask=batch.get("attention_mask")).last_hidden_state
        return head_loss(model.lm_head, hidden.flatten(0, 1)[batch["places"]], batch["targets"])

    def located(self, batch: Batch) -> Batch:
        """With the flat positions to predict besides, `places`, and what stands there, `targets`."""
        labels = batch["labels"].flatten()
        places = (labels != IGNORED).nonzero().squeeze(1)
        return {**super().located(batch), "places": places, "targets": labels[places]}

    @torch.no_grad()
    def validate(self, model: Any, device: torch.device) -> dict[str, float]:
        """The mean loss over the fixed masked positions."""
        total = torch.zeros((), dtype=torch.float64)
        for start in range(0, len(self._valid["labels"]), _VALIDATION_BLOCKS):
            part = {key: tensor[start : start + _VALIDATION_BLOCKS] for key, tensor in self._valid.items()}
            part = {key: tensor.to(device) for key, tensor in self.located(part).items()}
            total += self.loss(model, part).double().cpu()
        return {"valid_loss": float(total) / max(self.labelled(self._valid), 1)}

    def _masked(self, blocks: Integers, generator: np.random.Generator) -> Batch:
        # by the true tokens: a random replacement may happen to be the padding token
        return {**self._masking.mask(blocks, generator), "attention_mask": _long(blocks != self._pad)}


@dataclass(frozen=True)
class Encoded:
    """Sentences (or pairs) as token ids, with labels as indices."""

    ids: tuple[list[int], ...]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        """How many examples there are."""
        return len(self.ids)


def encode(
    tokenizer: Any, texts: Sequence[str], pairs: Sequence[str] | None, labels: Sequence[int], max_length: int
) -> Encoded:
    """Tokenise sentences, or premise and hypothesis, truncated to `max_length` tokens with special tokens."""
    second = {} if pairs is None else {"text_pair": list(pairs)}
    encoded = tokenizer(list(texts), **second, truncation=True, max_length=max_length)
    return Encoded(tuple(encoded["input_ids"]), np.asarray(labels, dtype=np.int64))


class Classification(Objective):
    """Cross-entropy on labelled sentences; chosen by the benchmark's metric on the source language's validation."""

    metric, higher_is_better = "valid_score", True

    def __init__(self, train: Encoded, valid: Encoded, labels: tuple[str, ...], metric: Metric, pad_id: int) -> None:
        """Bind the data.

        Args:
            labels: the label names; predictions are indices into them.
            metric: `macro_f1` or `accuracy`.
            pad_id: the token that attention leaves out.
        """
        self._train, self._valid, self._labels, self._metric, self._pad = train, valid, labels, metric, pad_id

    @property
    def examples(self) -> int:
        """How many training sentences there are."""
        return len(self._train)

    def narrow(self, model: Any) -> None:
        """The head reads `<s>` alone."""
        from deftx.kernels.last_layer import read_first_token_only

        read_first_token_only(model)

    def batch(self, numbers: NDArray[np.int64], generator: np.random.Generator) -> Batch:
        """Sentences padded to the longest one of the batch."""
        return {**pad([self._train.ids[n] for n in numbers], self._pad), "labels": _long(self._train.labels[numbers])}

    def loss(self, model: Any, batch: Batch) -> Tensor:
        """Cross-entropy summed over the batch."""
        logits = model(batch["input_ids"], attention_mask=batch.get("attention_mask")).logits
        return cross_entropy(widened(logits), batch["labels"], reduction="sum")

    def validate(self, model: Any, device: torch.device) -> dict[str, float]:
        """The benchmark's metric, in 0..1."""
        predicted = predict(model, self._valid, self._pad, device)
        return {"valid_score": score(self._valid.labels.tolist(), predicted.tolist(), self._labels, self._metric)}


@torch.no_grad()
def predict(model: Any, encoded: Encoded, pad_id: int, device: torch.device) -> NDArray[np.int64]:
    """The most likely label of each example, in order; batches are by length, so that little is padding."""
    predicted = np.zeros(len(encoded), dtype=np.int64)
    for numbers in _by_length(encoded):
        batch = {key: tensor.to(device) for key, tensor in pad([encoded.ids[n] for n in numbers], pad_id).items()}
        predicted[numbers] = model(**batch).logits.argmax(dim=-1).cpu().numpy()
    return predicted


def pad(ids: Sequence[Sequence[int]], pad_id: int) -> Batch:
    """`input_ids` and `attention_mask`, each (n, longest) int64."""
    longest = max(len(one) for one in ids)
    filled = torch.full((len(ids), longest), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(filled)
    for row, one in enumerate(ids):
        filled[row, : len(one)] = torch.tensor(one)
        mask[row, : len(one)] = 1
    return {"input_ids": filled, "attention_mask": mask}


def _by_length(encoded: Encoded) -> Iterator[NDArray[np.int64]]:
    order = np.argsort([len(ids) for ids in encoded.ids], kind="stable")
    return (order[start : start + _VALIDATION_BATCH] for start in range(0, len(order), _VALIDATION_BATCH))


def _long(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(array.astype(np.int64))
