"""The two-valley model of stochastic gradient descent: its landscape (kernels/langevin.py has the formulas)."""
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Landscape:
    """The parameters of the model; f0 and x0 are 1, which is a choice of units. Defaults: Table S1 of the paper."""

    flat_minimum: float = 0.8     # x_1
    sharp_minimum: float = 0.65   # x_2
    y_f: float = 20.0
    y_b: float = 30.0
    y_d: float = 100.0
    loss_height: float = 1.0      # L_d

    @classmethod
    def of(cls, options) -> "Landscape":
        """The landscape that a job asks for."""
        return cls(**{name: getattr(options, name) for name in cls.__dataclass_fields__})

    def model(self, learning_rate: float, noise_strength: float, noise_power: int) -> np.ndarray:
        """float64[11]: what kernels/langevin.py takes."""
        return np.array([self.flat_minimum, self.sharp_minimum, self.flat_minimum**-2, self.sharp_minimum**-2,
                         self.y_f, self.y_b, 1 / self.y_d, self.loss_height, learning_rate, noise_strength,
                         noise_power], dtype=np.float64)
