"""DistributedForward in one process; tests/runtime/distributed covers several processes."""

import torch

from vqtool.data import SampleSpec
from vqtool.models.autoencoder import Autoencoder, ModelSettings, resolve_model
from vqtool.training.ddp import DistributedForward


def test_one_process_calls_the_model_itself() -> None:
    spec = SampleSpec("C", 4, (), None, "float32")
    blocks = {"encoder": {"kind": "mlp", "width": 8}, "quantizer": {"kind": "vector", "codebook_size": 6}}
    settings = resolve_model(ModelSettings.model_validate(blocks), spec)
    model = Autoencoder(settings, spec, (0.0,) * 4, (1.0,) * 4).eval()
    x = torch.randn(5, 4)
    output, expected = DistributedForward(model)(x), model(x)
    assert torch.equal(output.prediction, expected.prediction)
    assert torch.equal(output.quantizer.indices, expected.quantizer.indices)
