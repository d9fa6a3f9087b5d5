import numpy as np
import pytest
import skimage.data


@pytest.fixture(scope="session")
def astronaut() -> np.ndarray:
    """A photograph that is in the public domain and comes with scikit-image: 512 x 512 x 3 uint8, one face."""
    return skimage.data.astronaut()


@pytest.fixture(scope="session")
def astronaut_clip(astronaut) -> list[np.ndarray]:
    """The astronaut's head, 256 x 256, wandering over the picture: 12 frames."""
    return [astronaut[2 * step : 256 + 2 * step, 90 + 4 * step : 346 + 4 * step] for step in range(12)]
