"""End-to-end test on real data: train, encode, decode, eval and inspect on handwritten digits."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import r2_score

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Return the path of the digits as scripts/make_tensors.py writes them."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import make_tensors
    finally:
        sys.path.pop(0)
    folder = tmp_path_factory.mktemp("arrays")
    np.save(folder / "digits.npy", make_tensors.digits())
    return folder / "digits.npy"


def test_digits_end_to_end(vqtool, digits, tmp_path):
    run, tokens_path, decoded_path = tmp_path / "run", tmp_path / "tokens.npy", tmp_path / "back.npy"
    config = ROOT / "configs" / "images.yaml"
    keys = ["data.kind=tensors", f"data.path={digits}", "training.steps=120", "training.device=cpu"]
    keys += ["model.encoder.width=32", "model.encoder.res_blocks=1", "model.quantizer.codebook_size=64"]
    overrides = [argument for key in keys for argument in ("--set", key)]
    assert vqtool("train", "--config", config, "--run-dir", run, *overrides).code == 0
    assert vqtool("encode", run, "--out", tokens_path).code == 0
    assert vqtool("decode", run, tokens_path, "--out", decoded_path).code == 0

    images, decoded = np.load(digits), np.load(decoded_path)
    assert (decoded.shape, decoded.dtype) == (images.shape, images.dtype)

    # The errors of eval are those of the decoded file.
    report = json.loads(vqtool("eval", run, digits, "--json").out)
    flat = [array.reshape(len(array), -1).astype(np.float64) for array in (images, decoded)]
    assert report["samples"] == len(images)
    assert report["mse"] == pytest.approx(((flat[0] - flat[1]) ** 2).mean(), rel=1e-9)
    assert report["nmse"] == pytest.approx(report["mse"] / flat[0].var(axis=0).mean(), rel=1e-9)
    assert report["nmse"] < 0.4
    # scikit-learn ignores constant features, so the error on constant pixels is added.
    varies = flat[0].var(axis=0) > 0
    assert varies.sum() < 64
    r2 = r2_score(flat[0][:, varies], flat[1][:, varies], multioutput="variance_weighted")
    constant_error = ((flat[0] - flat[1])[:, ~varies] ** 2).sum() / ((flat[0] - flat[0].mean(axis=0)) ** 2).sum()
    assert report["nmse"] == pytest.approx(1 - r2 + constant_error, rel=1e-9)

    # The counts of inspect are those of the index file.
    counts = np.bincount(np.load(tokens_path).ravel(), minlength=64).tolist()
    for inspected in (vqtool("inspect", tokens_path, "--json"), vqtool("inspect", run, "--data", digits, "--json")):
        (level,) = json.loads(inspected.out)["levels"]
        assert level["counts"] == counts
        assert level["used"] > 40
