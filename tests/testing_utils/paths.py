"""What lies where."""

from pathlib import Path


ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "fsth_hub" / "examples"
PORTRAIT, DRIVER = EXAMPLES / "astronaut.jpg", EXAMPLES / "driver.mp4"
BUNDLED_CARD = ROOT / "fsth_hub" / "checkpoints" / "small" / "README.md"
# What losses and metrics need lies beside the checkout, if anywhere.
WEIGHTS = ROOT.parent / "shared" / "weights"
