"""A model of which several processes each pass a share of the batch, so that its gradients are those of the whole."""

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vqtool.models.autoencoder import Autoencoder, AutoencoderOutput
from vqtool.quantizers.codebook import Codebook
from vqtool.runtime.distributed import world_size


class DistributedForward:
    """Calls the model; where there are several processes, by DistributedDataParallel, which averages gradients."""

    def __init__(self, model: Autoencoder) -> None:
        self._model = model
        self._parallel: DistributedDataParallel | None = None
        self._waited = False
        self._needed = world_size() > 1 and any(parameter.requires_grad for parameter in model.parameters())

    def __call__(self, x: Tensor) -> AutoencoderOutput:
        """The output for this process' share (B, ...) of a batch."""
        output: AutoencoderOutput = self._module()(x)
        return output

    def _module(self) -> nn.Module:
        needs_init = self._model.quantizer.needs_init
        if self._needed and (self._parallel is None or self._waited != needs_init):
            self._parallel = None  # first, for it has hooks on the same parameters
            self._parallel = DistributedDataParallel(
                self._model,
                forward_sync_buffers=False,  # quantizers keep theirs alike
                find_unused_parameters=needs_init and self._learns_by_gradient(),  # codes that wait have no gradient
            )
            self._waited = needs_init
        return self._parallel or self._model

    def _learns_by_gradient(self) -> bool:
        codebooks = [module for module in self._model.modules() if isinstance(module, Codebook)]
        return any(parameter.requires_grad for codebook in codebooks for parameter in codebook.parameters())
