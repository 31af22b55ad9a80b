"""bf16 autocast learns as float32 does: both phases of a language vector, half as wide as the demo's, on its text.

Small, since a processor without bf16 instructions takes 25 to 80 times as long over a product in bf16 as in float32.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deftx.config import Execution, Training
from deftx.data.archipelago import Sizes, family_files
from deftx.masks.select import Indices
from deftx.method.pretrain import _objective, new_model, train_tokenizer
from deftx.models.load import untie
from deftx.models.parameters import maskable
from deftx.sources.files import FileSource
from deftx.stages.settings import BackboneSettings
from deftx.train.loop import train
from deftx.train.trainable import phase

TRAINING = Training(
    max_steps=300, batch_size=16, learning_rate=4e-3, warmup=0.06, weight_decay=0.01, betas=(0.9, 0.98),
    validate_every=30,
)  # fmt: skip


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_the_loss_curve_in_bf16_lies_within_the_spread_of_three_float32_seeds(sparse: bool) -> None:
    files = dict(family_files(0, Sizes(pretraining=1, corpus=1000, train=3, valid=3, test=3)))
    texts = {"ila": files["corpora/ila.txt"].splitlines()}
    source = FileSource(sha256="0" * 64, url="unused")
    settings = BackboneSettings(
        vocabulary=600, hidden=64, feed_forward=128, block=16, training=TRAINING, texts=(("ila", source),),
        tokenizer_texts=(), seed=0,
    )  # fmt: skip
    tokenizer = train_tokenizer(list(texts.values()), settings.vocabulary)

    def curve(seed: int, precision: str) -> list[float]:
        model = new_model(len(tokenizer), settings, seed)
        untie(model)
        training = TRAINING.model_copy(update={"precision": precision})
        mask: Indices | None = None
        if sparse:
            generator = torch.Generator().manual_seed(seed)
            draws = {name: torch.rand(p.numel(), generator=generator) for name, p in maskable(model).items()}
            mask = {name: (drawn < 0.3).nonzero().squeeze(1) for name, drawn in draws.items()}
        result = train(
            model, _objective(tokenizer, settings, texts, 0), training, seed=seed,
            trainable=phase(model, training, mask), execution=Execution(),
        )  # fmt: skip
        return [point["train_loss"] for point in result.curve]

    float32 = np.array([curve(seed, "float32") for seed in range(3)])
    bf16 = np.array(curve(0, "bf16"))
    spread = float32.max(axis=0) - float32.min(axis=0)
    assert float32[:, -1].max() < float32[:, 0].min() - 0.5  # it does learn
    assert not np.array_equal(bf16, float32[0])
    # its distance to float32 from the same draws, point by point, against that of other draws
    assert (np.abs(bf16 - float32[0]) <= spread).all(), (bf16, float32)
