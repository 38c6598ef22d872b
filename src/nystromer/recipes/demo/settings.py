"""The settings of the demo, chosen on windows of training files that were set aside."""

from __future__ import annotations

from dataclasses import dataclass

from nystromer.checks import check_positive


@dataclass(frozen=True)
class Settings:
    """Holds the settings of the demo; the defaults take about four minutes on two cores.

    Args:
        scaling_ns, scaling_repeats, scaling_time_limit: Lengths N of the scaling measurement, runs
            of each case, and the seconds above which a run is left out.
        length: Bytes, and so tokens, of a window of source code.
        num_packages: Classes.
        max_windows: Of a package in training.
        epochs, batch_size, learning_rate, weight_decay: Of the training.
        width, num_layers, num_heads, head_dim, dropout: Of the classifier.
        num_landmarks: M, of the Nyström twin.

    Raises:
        ValueError: If `epochs` is below 1.
    """

    scaling_ns: tuple[int, ...] = (256, 512, 1024, 2048, 4096, 8192, 16_384, 65_536)
    scaling_repeats: int = 3
    scaling_time_limit: float = 8.0
    length: int = 2048
    num_packages: int = 10
    max_windows: int = 250
    epochs: int = 1
    batch_size: int = 8
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    width: int = 64
    num_layers: int = 2
    num_heads: int = 1
    head_dim: int = 32
    num_landmarks: int = 64
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_positive("epochs", self.epochs)
