"""Names of an identity's files, and sizes of frames, without PyTorch, which the page need not wait for."""

WEIGHTS_NAME, CONFIG_NAME = "identity.safetensors", "identity.json"
COMPONENTS_FOLDER = "facial_components"  # of their low-rank updates
DEFAULT_SIZE, MAX_SIZE = 512, 1024  # of frames, pixels
