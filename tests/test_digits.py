"""The main job on real data: handwritten digits through train, encode, decode, eval and inspect."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import r2_score

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The folder that scripts/make_tensors.py writes to."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import make_tensors
    finally:
        sys.path.pop(0)
    folder = tmp_path_factory.mktemp("arrays")
    np.save(folder / "digits.npy", make_tensors.digits())
    return folder / "digits.npy"


def test_digits_end_to_end(vqtool, digits, tmp_path):
    run, tokens, back = tmp_path / "run", tmp_path / "tokens.npy", tmp_path / "back.npy"
    config = ROOT / "configs" / "images.yaml"
    keys = ["data.kind=tensors", f"data.path={digits}", "training.steps=120", "training.device=cpu"]
    keys += ["model.encoder.width=32", "model.encoder.res_blocks=1", "model.quantizer.codebook_size=64"]
    sets = [argument for key in keys for argument in ("--set", key)]
    assert vqtool("train", "--config", config, "--run-dir", run, *sets).code == 0
    assert vqtool("encode", run, "--out", tokens).code == 0
    assert vqtool("decode", run, tokens, "--out", back).code == 0

    images, decoded = np.load(digits), np.load(back)
    assert (decoded.shape, decoded.dtype) == (images.shape, images.dtype)

    # Eval's error is that of what decode wrote.
    report = json.loads(vqtool("eval", run, digits, "--json").out)
    flat = [array.reshape(len(array), -1).astype(np.float64) for array in (images, decoded)]
    assert report["samples"] == len(images)
    assert report["mse"] == pytest.approx(((flat[0] - flat[1]) ** 2).mean(), rel=1e-9)
    assert report["nmse"] == pytest.approx(report["mse"] / flat[0].var(axis=0).mean(), rel=1e-9)
    assert report["nmse"] < 0.4
    # scikit-learn leaves the error on pixels that never vary out of its sum; there are a few.
    varies = flat[0].var(axis=0) > 0
    assert varies.sum() < 64
    r2 = r2_score(flat[0][:, varies], flat[1][:, varies], multioutput="variance_weighted")
    outside = ((flat[0] - flat[1])[:, ~varies] ** 2).sum() / ((flat[0] - flat[0].mean(axis=0)) ** 2).sum()
    assert report["nmse"] == pytest.approx(1 - r2 + outside, rel=1e-9)

    # Inspect's counts are those of the index file.
    counts = np.bincount(np.load(tokens).ravel(), minlength=64).tolist()
    for inspected in (vqtool("inspect", tokens, "--json"), vqtool("inspect", run, "--data", digits, "--json")):
        (level,) = json.loads(inspected.out)["levels"]
        assert level["counts"] == counts
        assert level["used"] > 40
