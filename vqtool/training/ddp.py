"""Forward pass of the model when several processes each have a shard of the batch."""

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from vqtool.models.autoencoder import Autoencoder, AutoencoderOutput
from vqtool.quantizers.codebook_update import Codebook
from vqtool.runtime.distributed import world_size


class DistributedForward:
    """Calls the model; with several processes through DistributedDataParallel (DDP).

    In backward, DDP averages the gradients over the processes. They are then those of the whole batch, because
    `BatchShard` computes the losses over the whole batch.
    """

    def __init__(self, model: Autoencoder) -> None:
        self._model = model
        self._uses_ddp = world_size() > 1 and any(parameter.requires_grad for parameter in model.parameters())
        self._ddp: DistributedDataParallel | None = None
        self._ddp_needs_init = False  # whether codes were still to be initialised when `_ddp` was made

    def __call__(self, x: Tensor) -> AutoencoderOutput:
        """Return the model's output for `x`, this process's shard of the batch: (B, C, *size) or classes (B, *size)."""
        needs_init = self._model.quantizer.needs_init
        if self._uses_ddp and (self._ddp is None or self._ddp_needs_init != needs_init):
            self._ddp = None  # before a new one is made: both would hook the same parameters
            self._ddp = DistributedDataParallel(
                self._model,
                forward_sync_buffers=False,  # quantizers keep their buffers equal on all ranks
                # Codes get no gradient before the initialisation, and DDP must know that it need not wait for one.
                find_unused_parameters=needs_init and self._codes_have_gradients(),
            )
            self._ddp_needs_init = needs_init
        output: AutoencoderOutput = (self._ddp or self._model)(x)
        return output

    def _codes_have_gradients(self) -> bool:
        """Return whether codes are trained by gradient."""
        codebooks = [module for module in self._model.modules() if isinstance(module, Codebook)]
        return any(parameter.requires_grad for codebook in codebooks for parameter in codebook.parameters())
