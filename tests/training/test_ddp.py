"""A model alone is called as it is; what several processes make of it is in tests/distributed."""

import torch

from vqtool.data import SampleSpec
from vqtool.models.autoencoder import Autoencoder, ModelSettings, resolve_model
from vqtool.training.ddp import DistributedForward


def test_alone_the_model_itself_is_called() -> None:
    spec = SampleSpec("C", 4, (), None, "float32")
    blocks = {"encoder": {"kind": "mlp", "width": 8}, "quantizer": {"kind": "vector", "codebook_size": 6}}
    settings = resolve_model(ModelSettings.model_validate(blocks), spec)
    model = Autoencoder(settings, spec, (0.0,) * 4, (1.0,) * 4).eval()
    x = torch.randn(5, 4)
    found, expected = DistributedForward(model)(x), model(x)
    assert torch.equal(found.prediction, expected.prediction)
    assert torch.equal(found.quantizer.indices, expected.quantizer.indices)
