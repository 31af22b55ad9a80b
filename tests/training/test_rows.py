"""The word embedding by rows: the same numbers as a gradient of the whole table, without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny import LABELS, make_mlm
from torch import Tensor, nn
from torch.nn.functional import embedding

from deftx.config import Training
from deftx.kernels import embedding_rows as rows
from deftx.kernels.embedding_rows import MaskedRows, RowAdamW, Rows
from deftx.models.load import load_classifier, load_masked_lm
from deftx.models.parameters import maskable
from deftx.train.loop import train
from deftx.train.trainable import phase, word_embedding

ROWS, WIDTH, PAD = 30, 4, 1
WORDS = "embeddings.word_embeddings.weight"


def table(seed: int = 0) -> nn.Embedding:
    torch.manual_seed(seed)
    return nn.Embedding(ROWS, WIDTH, padding_idx=PAD).double()


def token_ids(seed: int, rows: int = ROWS) -> Tensor:
    return torch.randint(0, rows, (3, 5), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [WIDTH, 7 * WIDTH, 1 << 20])
def test_adamw_by_rows_equals_torchs_over_the_whole_table(
    monkeypatch: pytest.MonkeyPatch, decay: float, chunk: int
) -> None:
    monkeypatch.setitem(rows._CHUNK, "cpu", chunk)
    whole, ours = nn.Parameter(table().weight.detach().clone()), table().weight.detach().clone()
    plain = torch.optim.AdamW([whole], lr=0.1, betas=(0.9, 0.99), weight_decay=decay, foreach=False)
    by_rows = RowAdamW(ours, (0.9, 0.99), decay)
    for step in range(50):
        # later batches lack the upper rows, whose moments move them all the same; the last rows are in no batch
        ids = token_ids(step, 25 if step < 5 else 8).unique()
        gradient = torch.randn(len(ids), WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        whole.grad = torch.zeros_like(whole).index_copy_(0, ids, gradient)
        plain.param_groups[0]["lr"] = rate = 0.1 / (step + 1)
        plain.step()
        by_rows.step(ids, gradient, rate)
        if step == 20:  # as from a checkpoint, made on a device with chunks of another size
            state = by_rows.state_dict()
            monkeypatch.setitem(rows._CHUNK, "cpu", 3 * WIDTH)
            by_rows = RowAdamW(ours, (0.9, 0.99), decay)
            by_rows.load_state_dict(state)
    torch.testing.assert_close(ours, whole.detach(), rtol=0, atol=1e-12)
    assert len(by_rows.state_dict()["rows"]) <= 25


def test_the_rows_of_a_batch_get_the_tables_gradient_and_padding_none() -> None:
    plain, ours = table(), table()
    ours.weight.requires_grad_(False)
    by_rows = Rows(ours)
    ids, weights = token_ids(1), torch.randn(3, 5, WIDTH, dtype=torch.float64)
    ids[0, 0] = PAD
    (plain(ids) * weights).sum().backward()
    by_rows.take(ids)
    for part in range(3):  # micro-batches add up
        (ours(ids[part : part + 1]) * weights[part]).sum().backward()
    found = torch.zeros(ROWS, WIDTH, dtype=torch.float64).index_copy_(0, by_rows.ids, by_rows.leaf.grad)
    torch.testing.assert_close(found, plain.weight.grad, rtol=0, atol=1e-12)
    assert not found[PAD].any()
    by_rows.close()
    assert torch.equal(ours(ids), embedding(ids, ours.weight))


def test_chosen_entries_lie_over_the_table_and_get_their_part_of_the_gradient() -> None:
    plain, ours = table(), table()
    before = ours.weight.detach().clone()
    index = torch.rand(ROWS * WIDTH, generator=torch.Generator().manual_seed(2)).lt(0.3).nonzero().squeeze(1)
    values = nn.Parameter(torch.randn(len(index), dtype=torch.float64))
    with torch.no_grad():
        plain.weight.view(-1)[index] = values
    ours.weight.requires_grad_(False)
    by_rows = MaskedRows(ours, index, values)
    ids = token_ids(3, 20)
    by_rows.take(ids)
    weights = torch.randn(3, 5, WIDTH, dtype=torch.float64)
    (plain(ids) * weights).sum().backward()
    (ours(ids) * weights).sum().backward()
    by_rows.gather()
    torch.testing.assert_close(values.grad, plain.weight.grad.view(-1)[index], rtol=0, atol=1e-12)
    ours.eval()
    others = torch.arange(ROWS)
    assert torch.equal(ours(others), plain.weight.detach())  # also rows that are in no batch
    assert torch.equal(ours.weight, before)


def test_a_sparse_language_phase_holds_the_table_once_and_leaves_two(backbone: Path) -> None:
    model, settings = load_masked_lm(backbone, dropout=0.0), Training(max_steps=4, batch_size=4, learning_rate=1e-2)
    words, decoder = model.get_input_embeddings().weight, model.lm_head.decoder.weight
    before = words.detach().clone()
    mask = {WORDS: torch.arange(0, before.numel(), 3)}
    trainable = phase(model, settings, mask)
    assert words.data_ptr() == decoder.data_ptr()
    train(model, make_mlm(), settings, seed=1, trainable=lambda: trainable)
    assert words.data_ptr() != decoder.data_ptr()
    assert torch.equal(decoder, before)
    on = torch.zeros(before.numel(), dtype=torch.bool)
    on[mask[WORDS]] = True
    changed = (words.detach() != before).view(-1)
    assert bool(changed.any()) and not bool((changed & ~on).any())


def test_memory_is_not_shared_with_another_output_embedding(backbone: Path) -> None:
    model = load_masked_lm(backbone)
    with torch.no_grad():
        model.lm_head.decoder.weight[0, 0] += 1
    trainable = phase(model, Training(), {WORDS: torch.arange(9)})
    assert model.get_input_embeddings().weight.data_ptr() != model.lm_head.decoder.weight.data_ptr()
    trainable.close()


def test_a_table_that_something_else_uses_too_is_not_looked_up_by_rows(backbone: Path) -> None:
    from transformers import XLMRobertaForMaskedLM

    tied = XLMRobertaForMaskedLM.from_pretrained(backbone)
    assert word_embedding(tied) is None
    assert word_embedding(load_masked_lm(backbone)) is not None


def test_a_table_that_does_more_than_look_up_is_left_to_do_it(backbone: Path) -> None:
    class Scaled(nn.Embedding):
        """As XGLM's."""

    model = load_masked_lm(backbone)
    model.set_input_embeddings(Scaled(50, 16))
    assert word_embedding(model) is None


@pytest.mark.parametrize("l1", [0.0, 1.0])
def test_the_l1_term_of_a_dense_phase_needs_the_whole_table(backbone: Path, l1: float) -> None:
    model: Any = load_classifier(backbone, LABELS, 1)
    assert (phase(model, Training(l1=l1)).rows is None) == bool(l1)
    assert phase(model, Training(l1=l1), {name: torch.arange(2) for name in maskable(model)}).rows is not None
