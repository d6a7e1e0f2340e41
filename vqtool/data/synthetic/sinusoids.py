"""Sums of sinusoids: windows of a signal with a few tones each."""

from typing import ClassVar, Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import Field

from vqtool.data.synthetic.base import SourceSettings
from vqtool.runtime.progress import with_progress


class SinusoidsSettings(SourceSettings):
    """Sequences: sums of sinusoids of random frequency, phase and amplitude."""

    kind: Literal["sinusoids"] = "sinusoids"
    channels: int = Field(1, ge=1, description="number of channels, each with its own tones")
    length: int = Field(128, ge=2, description="steps per sequence")
    tones: int = Field(3, ge=1, le=1 << 16, description="sinusoids per channel")
    noise: float = Field(0.02, ge=0, le=1e6, description="standard deviation of the added noise")
    layout: ClassVar = "CT"

    @property
    def numbers(self) -> int:
        return self.channels * self.length

    def generate(self, samples: int, random: Generator) -> NDArray[np.float32]:
        signal = random.normal(scale=self.noise, size=(samples, self.channels, self.length))
        time = np.arange(self.length) / self.length
        for _ in with_progress(range(self.tones), "generate data", "tones"):
            # At least two steps a period, so that every tone can be seen; low ones are likelier.
            cycles = self.length / 2 * random.power(0.5, size=(samples, self.channels, 1))
            phase = random.uniform(0, 2 * np.pi, size=cycles.shape)
            signal += random.uniform(0.2, 1, size=cycles.shape) * np.sin(2 * np.pi * cycles * time + phase)
        return signal.astype(np.float32)
