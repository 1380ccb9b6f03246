"""What of a detector's body stays as it is in training."""

from typing import Any

import torch
from torch import nn

from wbc.models.faster_rcnn import FasterRCNNSettings, build
from wbc.training.detector import freeze_body, unfreeze_body


def test_batch_norms_learn_only_where_nothing_was_learnt_before() -> None:
    half = (0.5, 0.5, 0.5)
    model: Any = build(2, half, half, FasterRCNNSettings("test_efficientnet", 8, 16))
    pixels = torch.rand(2, 3, 64, 64)
    for norms in (True, False):
        freeze_body(model, (), norms=norms)
        before = {name: tensor.clone() for name, tensor in model.body.state_dict().items()}
        assert any(isinstance(m, nn.BatchNorm2d) for m in model.body.modules()) != norms
        model.train().body(pixels)
        after = model.body.state_dict()
        assert norms == all(torch.equal(after[name], tensor) for name, tensor in before.items())
        unfreeze_body(model)
