"""Write example arrays from data that ship with scikit-learn: handwritten digits and patches of photographs.

    python scripts/make_tensors.py FOLDER

Writes digits.npy (1797, 1, 8, 8) float32, digits-vectors.npy (1797, 64) with the same values, and patches.npy
(N, 32, 32, 3) uint8.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits, load_sample_images


def digits() -> NDArray[np.float32]:
    """Return (1797, 1, 8, 8) handwritten digits with grey levels from 0 to 16."""
    images: NDArray[np.float64] = load_digits().images
    return images[:, None].astype(np.float32)


def patches(side: int = 32, stride: int = 16) -> NDArray[np.uint8]:
    """Return RGB squares (N, side, side, 3) of two photographs, one every `stride` pixels; they overlap by default."""
    squares = [
        image[top : top + side, left : left + side]
        for image in load_sample_images().images
        for top in range(0, image.shape[0] - side + 1, stride)
        for left in range(0, image.shape[1] - side + 1, stride)
    ]
    return np.stack(squares)


def main() -> None:
    """Write all arrays."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder to write to; created if missing")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    images = digits()
    arrays: dict[str, NDArray[Any]] = {
        "digits": images,
        "digits-vectors": images.reshape(len(images), -1),
        "patches": patches(),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
        print(f"{folder / name}.npy  {array.shape} {array.dtype}")


if __name__ == "__main__":
    main()
