"""The two objectives: masked language modelling on token blocks, and classification of encoded sentences.

An objective has the data. It turns example numbers into a batch of tensors, a batch into its summed loss, and a model
into its validation metrics. The LM head is computed at masked positions only. Random numbers come from the generator
that the loop passes in; how weights are stepped is in `step`.

A training step repeats the same operations on tensors of the same shapes, so that a GPU can replay them. Therefore a
batch is filled: with tokens up to one of a few lengths, with copies of its own examples up to its full size, and with
places that are not predicted up to a fixed number. What is filled in has no label and counts for nothing: a copy is
NaN only where its original is.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad as pad_to

from deftx.config import Metric
from deftx.data.blocks import Blocks
from deftx.evaluate.metrics import score
from deftx.kernels.linear_cross_entropy import IGNORED, fused_linear_cross_entropy, sum_of_losses
from deftx.models.architectures import lm_head_of
from deftx.models.parameters import base_of

Batch = dict[str, Tensor]
Integers = NDArray[np.int32]

_LENGTHS = 8
"""Batches are as many tokens long as the next multiple of this: every length is a graph of its own on a GPU."""
_DEVIATIONS = 6
"""Standard deviations between the mean number of predicted positions and the number that a step has room for."""
_VALIDATION_BATCH = 64
"""Sentences validated at once."""
_VALIDATION_BLOCKS = 8
"""Blocks validated at once: the paper's batch size, so that validation takes no more memory than training."""


class Objective(ABC):
    """What a phase minimises, and the validation metric that chooses its best checkpoint.

    Attributes:
        metric: the name of that metric among those of `validate`.
        higher_is_better: whether its best value is the largest.
        pad_id: the token that attention leaves out.
        longest: tokens of the longest training example.
    """

    metric: str
    higher_is_better: bool
    pad_id: int
    longest: int

    @property
    @abstractmethod
    def examples(self) -> int:
        """How many training examples (or blocks) there are."""

    @property
    def warnings(self) -> list[str]:
        """What is doubtful about the data, a sentence each."""
        return []

    def largest(self, number: int) -> NDArray[np.int64]:
        """The numbers of as many training examples that make the largest batch: the longest, with one to be padded."""
        return np.arange(number)

    @abstractmethod
    def batch(self, numbers: NDArray[np.int64], generator: np.random.Generator) -> Batch:
        """The training examples of these numbers as CPU tensors with the batch first; `labels` are among them."""

    @abstractmethod
    def loss(self, model: Any, batch: Batch) -> Tensor:
        """The loss summed over the labelled positions of a batch: a scalar in float32 at least."""

    @abstractmethod
    def validate(self, model: Any, device: torch.device) -> dict[str, float]:
        """The validation metrics of a model in evaluation mode; `self.metric` is among them."""

    def prepare_batch(self, batch: Batch, examples: int | None = None) -> Batch:
        """The batch as the model and the loss read it, computed on the CPU so that no step waits for a GPU.

        A mask of ones is left out.

        Args:
            batch: of `batch`, or some of its examples.
            examples: fill it up to this many, and to one of a few lengths; None: it is not filled.
        """
        if examples is not None:
            batch = self._filled(batch, examples)
        if "attention_mask" in batch and bool(batch["attention_mask"].all()):
            return {key: tensor for key, tensor in batch.items() if key != "attention_mask"}
        return dict(batch)

    def _filled(self, batch: Batch, examples: int) -> Batch:
        number = len(batch["labels"])
        rows = torch.arange(examples) % number
        batch = {key: tensor[rows] for key, tensor in batch.items()}
        batch["labels"][number:] = IGNORED
        length = batch["input_ids"].shape[1]
        more = min(-(-length // _LENGTHS) * _LENGTHS, self.longest) - length
        if more <= 0:
            return batch
        fill = {"input_ids": self.pad_id, "labels": IGNORED}
        return {
            key: pad_to(tensor, (0, more), value=fill.get(key, 0)) if tensor.dim() > 1 else tensor
            for key, tensor in batch.items()
        }

    @staticmethod
    def num_targets(batch: Batch) -> int:
        """The number of labelled positions of a batch."""
        return int((batch["labels"] != IGNORED).sum())


@dataclass(frozen=True)
class Masking:
    """How tokens are masked, as in BERT (Devlin et al., 2019, Section 3.1).

    Of the tokens chosen for prediction 80 % become the mask token, 10 % a random one, 10 % stay.
    """

    share: float
    """Of the tokens that are not special, how many are chosen."""
    mask_id: int
    vocabulary: int
    """Random tokens are drawn from 0 to vocabulary - 1."""
    special: frozenset[int]
    word_starts: NDArray[np.bool_] | None = None
    """[vocabulary], whether a token id begins a word: whole words are chosen then. None: single tokens."""

    def mask(self, blocks: Integers, generator: np.random.Generator) -> Batch:
        """`input_ids` with masked tokens and `labels`, -100 where nothing is predicted: [blocks, tokens] int64.

        Args:
            blocks: [blocks, tokens] int32 token ids.
            generator: its next numbers decide.
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
        """Which tokens are to be predicted, [blocks, tokens]; `plain` says which are not special."""
        if self.word_starts is None:
            return (generator.random(blocks.shape) < self.share) & plain
        # every token takes the draw of its word, numbered along the block (0: begun in the block before)
        word = np.cumsum(self.word_starts[blocks] | ~plain, axis=1, dtype=np.int64)
        draws = generator.random((blocks.shape[0], blocks.shape[1] + 1))
        return (np.take_along_axis(draws, word, axis=1) < self.share) & plain


class MaskedLanguageModelling(Objective):
    """Masked language modelling on token blocks; the metric is the validation loss under one fixed mask."""

    metric, higher_is_better = "valid_loss", False

    def __init__(self, blocks: Blocks, masking: Masking, pad_id: int, mask_seed: int) -> None:
        """Bind the data.

        Args:
            blocks: training and validation blocks, int32.
            masking: how both sides are masked.
            pad_id: the token that attention leaves out.
            mask_seed: of the validation mask, the same for every phase on this text.
        """
        self._blocks, self._masking, self.pad_id = blocks.train, masking, pad_id
        self.longest = blocks.train.shape[1]
        # 7 is no key of the loop's streams, whose seed may be the same
        self._valid = self._masked(blocks.valid, np.random.default_rng([mask_seed, 7]))

    @property
    def examples(self) -> int:
        """How many training blocks there are."""
        return len(self._blocks)

    def largest(self, number: int) -> NDArray[np.int64]:
        """The blocks with the most tokens, and the one with the fewest."""
        return _largest((self._blocks != self.pad_id).sum(axis=1), number)

    def batch(self, numbers: NDArray[np.int64], generator: np.random.Generator) -> Batch:
        """Blocks with a new mask, [batch, tokens], cut after the longest of them."""
        blocks = self._blocks[numbers]
        longest = int((blocks != self.pad_id).sum(axis=1).max())
        return self._masked(blocks[:, :longest], generator)

    def loss(self, model: Any, batch: Batch) -> Tensor:
        """Cross-entropy summed over the masked positions."""
        if "places" not in batch:
            batch = self.prepare_batch(batch)
        hidden = base_of(model)(batch["input_ids"], attention_mask=batch.get("attention_mask")).last_hidden_state
        there = hidden.flatten(0, 1).index_select(0, batch["places"])
        # a product with 0 would let a NaN of a position without a label into the gradients of the head
        there = torch.where((batch["targets"] != IGNORED).unsqueeze(1), there, 0.0)
        head = lm_head_of(model)
        assert head is not None, "a masked language model has an LM head"
        return fused_linear_cross_entropy(head.transform(there), head.decoder, batch["targets"])

    def prepare_batch(self, batch: Batch, examples: int | None = None) -> Batch:
        """The batch with `places` in place of labels, flat positions to predict, and `targets`, the tokens there.

        Both are [positions] int64. A filled batch has room for more positions than chance ever makes; where it makes
        more, for all. The others are distinct positions that are not predicted, with -100 as their target.
        """
        batch = super().prepare_batch(batch, examples)
        labels = batch.pop("labels").flatten()
        places = (labels != IGNORED).nonzero().squeeze(1)
        if examples is not None:
            room = self._room(len(labels), len(places))
            places = torch.cat([places, (labels == IGNORED).nonzero().squeeze(1)[: room - len(places)]])
        return {**batch, "places": places, "targets": labels[places]}

    def _room(self, positions: int, predicted: int) -> int:
        """How many of some positions a step predicts at most."""
        share = self._masking.share
        most = share * positions + _DEVIATIONS * math.sqrt(positions * share * (1 - share))
        room = -(-max(math.ceil(most), 1) // 16) * 16
        return min(-(-max(predicted, 1) // room) * room, positions)

    @torch.no_grad()
    def validate(self, model: Any, device: torch.device) -> dict[str, float]:
        """`valid_loss`, the mean over the fixed masked positions."""
        total = torch.zeros((), dtype=torch.float64, device=device)
        for start in range(0, len(self._valid["labels"]), _VALIDATION_BLOCKS):
            part = {key: tensor[start : start + _VALIDATION_BLOCKS] for key, tensor in self._valid.items()}
            part = {key: tensor.to(device) for key, tensor in self.prepare_batch(part).items()}
            total += self.loss(model, part)
        return {"valid_loss": float(total) / max(self.num_targets(self._valid), 1)}

    def _masked(self, blocks: Integers, generator: np.random.Generator) -> Batch:
        # the attention mask is of the true tokens: a random replacement may happen to be the padding token
        return {**self._masking.mask(blocks, generator), "attention_mask": _long(blocks != self.pad_id)}


@dataclass(frozen=True)
class Encoded:
    """Sentences or pairs as token ids, and their labels as indices, [examples].

    Attributes:
        segments: the segment of each token, 0 or 1, for a model that tells the two texts of a pair apart by it.
    """

    ids: tuple[list[int], ...]
    labels: NDArray[np.int64]
    segments: tuple[list[int], ...] | None = None

    def __len__(self) -> int:
        """How many examples there are."""
        return len(self.ids)

    def padded(self, numbers: Iterable[int], pad_id: int) -> Batch:
        """`input_ids`, `attention_mask` (0 where padded) and, if there are any, `token_type_ids` of some examples.

        Each is [examples, tokens of the longest] int64.
        """
        batch = pad([self.ids[number] for number in numbers], pad_id)
        if self.segments is not None:
            batch["token_type_ids"] = _rectangle([self.segments[number] for number in numbers], 0)
        return batch


def encode(
    tokenizer: Any,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    labels: Sequence[int],
    max_length: int,
    segments: bool = False,
) -> Encoded:
    """The examples as token ids, special tokens included, cut to `max_length` tokens.

    Args:
        tokenizer: of the backbone.
        texts: sentences, or the premises of pairs.
        pairs: the hypotheses; None for sentences.
        labels: indices of labels.
        max_length: tokens an example at most.
        segments: whether the model reads token types (see `models.load.reads_segments`), which its tokenizer may give.
    """
    second = {} if pairs is None else {"text_pair": list(pairs)}
    encoded = tokenizer(list(texts), **second, truncation=True, max_length=max_length)
    types = encoded.get("token_type_ids") if segments and pairs is not None else None
    return Encoded(tuple(encoded["input_ids"]), np.asarray(labels, dtype=np.int64), types and tuple(types))


class Classification(Objective):
    """Cross-entropy on labelled sentences; the metric is the benchmark's, on the source language's validation split."""

    metric, higher_is_better = "valid_score", True

    def __init__(self, train: Encoded, valid: Encoded, labels: tuple[str, ...], metric: Metric, pad_id: int) -> None:
        """Bind the data.

        Args:
            labels: the label names; predictions are indices into them.
            metric: `macro_f1` or `accuracy`.
            pad_id: the token that attention leaves out.
        """
        self._train, self._valid, self._labels, self._metric, self.pad_id = train, valid, labels, metric, pad_id
        self.longest = max(map(len, train.ids), default=0)

    @property
    def examples(self) -> int:
        """How many training sentences there are."""
        return len(self._train)

    @property
    def warnings(self) -> list[str]:
        """That a table has no row of some label."""
        what = {
            "training": (self._train, "so that the classifier never learns it"),
            "validation": (self._valid, "which macro F1 counts as 0, so that not even a perfect model scores 100"),
        }
        return [
            f"no {side} row is labelled {label!r}, {consequence}"
            for side, (rows, consequence) in what.items()
            for number, label in enumerate(self._labels)
            if not (rows.labels == number).any() and (side == "training" or self._metric == "macro_f1")
        ]

    def largest(self, number: int) -> NDArray[np.int64]:
        """The longest sentences, and the shortest."""
        return _largest(np.array([len(ids) for ids in self._train.ids]), number)

    def batch(self, numbers: NDArray[np.int64], generator: np.random.Generator) -> Batch:
        """Sentences padded to the longest one of the batch, [batch, tokens]."""
        return {**self._train.padded(numbers, self.pad_id), "labels": _long(self._train.labels[numbers])}

    def loss(self, model: Any, batch: Batch) -> Tensor:
        """Cross-entropy summed over the batch."""
        logits = model(**{key: tensor for key, tensor in batch.items() if key != "labels"}).logits
        return sum_of_losses(torch.where((batch["labels"] != IGNORED).unsqueeze(1), logits, 0.0), batch["labels"])

    def validate(self, model: Any, device: torch.device) -> dict[str, float]:
        """`valid_score`, the benchmark's metric between 0 and 1."""
        predicted = predict(model, self._valid, self.pad_id, device)
        return {"valid_score": score(self._valid.labels.tolist(), predicted.tolist(), self._labels, self._metric)}


@torch.no_grad()
def predict(model: Any, encoded: Encoded, pad_id: int, device: torch.device) -> NDArray[np.int64]:
    """The most likely label of each example, [examples], in their order.

    Batches are made by length, so that little is padding.

    Args:
        model: a classifier in evaluation mode, on `device`.
        encoded: its labels are not looked at.
        pad_id: the token that attention leaves out.
        device: where the batches go.
    """
    predicted = np.zeros(len(encoded), dtype=np.int64)
    for numbers in _by_length(encoded):
        batch = {key: tensor.to(device) for key, tensor in encoded.padded(numbers, pad_id).items()}
        predicted[numbers] = model(**batch).logits.argmax(dim=-1).cpu().numpy()
    return predicted


def pad(ids: Sequence[Sequence[int]], pad_id: int) -> Batch:
    """`input_ids` and `attention_mask` (0 where padded) of some examples: [examples, longest] int64."""
    return {"input_ids": _rectangle(ids, pad_id), "attention_mask": _rectangle([[1] * len(row) for row in ids], 0)}


def _rectangle(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Rows of numbers filled up to the longest, [rows, longest] int64."""
    filled = torch.full((len(rows), max(map(len, rows))), fill, dtype=torch.int64)
    for number, row in enumerate(rows):
        filled[number, : len(row)] = torch.tensor(row)
    return filled


def _by_length(encoded: Encoded) -> Iterator[NDArray[np.int64]]:
    order = np.argsort([len(ids) for ids in encoded.ids], kind="stable")
    return (order[start : start + _VALIDATION_BATCH] for start in range(0, len(order), _VALIDATION_BATCH))


def _largest(lengths: NDArray[np.int64], number: int) -> NDArray[np.int64]:
    """The places of the largest lengths, the last of which is the smallest of all: a mask is needed then."""
    order = np.argsort(-lengths, kind="stable")
    return order[:1] if number == 1 else np.append(order[: number - 1], order[-1])


def _long(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(array.astype(np.int64))
