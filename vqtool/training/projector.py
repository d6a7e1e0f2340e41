"""The best model's codes for TensorBoard's projector.

Shapes: K codes, D dimensions.
"""

import numpy as np
from google.protobuf.text_format import MessageToString
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from torch import Tensor

from vqtool.models.autoencoder import Autoencoder
from vqtool.runs.model_file import read_model
from vqtool.runs.run_directory import RunDirectory
from vqtool.runtime.files import atomic_write, convert_write_errors
from vqtool.runtime.progress import pass_bar

# Points that a browser can still turn.
_MOST = 10_000


def write_best_codes(run: RunDirectory, model: Autoencoder) -> None:
    """Write the learned codes of each level, the most used if there are very many, with their hits.

    Args:
        model: takes over the run's best weights.

    Raises:
        CheckpointError: the best model is damaged.
        DataError: a file cannot be written.
        Stopped: a signal asked to stop.
    """
    saved, _ = read_model(run.model)
    model.load_state_dict(saved.state)
    levels = enumerate(zip(model.quantizer.learned_codes, saved.counts, strict=True))
    learned = [(number, codes.detach().cpu(), hits) for number, (codes, hits) in levels if codes is not None]
    if not learned:
        return
    config = ProjectorConfig()
    with convert_write_errors(run.projector):
        run.projector.mkdir(exist_ok=True)
    with pass_bar("write codes", len(learned), "levels") as bar:
        for number, codes, hits in learned:
            _write_level(run, config, number, codes, hits)
            bar.update()
    with atomic_write(run.projector_config) as part:
        part.write_text(MessageToString(config), encoding="utf-8")


def _write_level(run: RunDirectory, config: ProjectorConfig, number: int, codes: Tensor, hits: Tensor) -> None:
    shown = hits.argsort(descending=True, stable=True)[:_MOST].sort().values
    points, labels = (run.projector / f"level_{number}_{name}.tsv" for name in ("codes", "hits"))
    with atomic_write(points) as part:
        np.savetxt(part, codes[shown].float().numpy(), fmt="%.6g", delimiter="\t")
    with atomic_write(labels) as part:
        lines = [f"{code}\t{count}" for code, count in zip(shown.tolist(), hits[shown].tolist(), strict=True)]
        part.write_text("\n".join(["code\thits", *lines]) + "\n", encoding="utf-8")
    embedding = config.embeddings.add()
    embedding.tensor_name = f"codebook, level {number}"
    embedding.tensor_path, embedding.metadata_path = (str(path.relative_to(run.folder)) for path in (points, labels))
