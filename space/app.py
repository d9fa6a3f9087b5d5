"""The demo as a Hugging Face Space: the page of fsth_hub, and what only a Space needs."""

import os
import tempfile
from pathlib import Path


# Read when Gradio is imported, which `spaces` may do. Uploads are never put on a disk that outlives the Space.
PRIVATE = Path(tempfile.mkdtemp(prefix="fsth-space-"))  # only this user's
os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(PRIVATE / "uploads")}

ON_ZERO_GPU = os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")  # as `spaces` reads it
if ON_ZERO_GPU:
    from zero_gpu import generate_on_gpu  # imports `spaces`, which must come before torch

import gradio as gr

from fsth_hub import FsthPipeline
from fsth_hub.demo import LAUNCH_OPTIONS, create_demo
from fsth_hub.provenance.signing_key import CERTIFICATE_VARIABLE, KEY_VARIABLE


def read_secrets() -> None:
    """A Space's secrets are texts; what signs wants the names of files."""
    for name in (CERTIFICATE_VARIABLE, KEY_VARIABLE):
        if (text := os.environ.get(name, "")).lstrip().startswith("-----BEGIN"):
            path = PRIVATE / f"{name}.pem"
            path.touch(mode=0o600)
            path.write_text(text)
            os.environ[name] = str(path)


def build() -> gr.Blocks:
    """The page; on ZeroGPU its clips are generated on a GPU."""
    if not ON_ZERO_GPU:
        return create_demo()
    demo = create_demo(FsthPipeline.from_pretrained())
    generate_on_gpu(demo.studio)
    return demo


if __name__ == "__main__":
    read_secrets()
    demo = build()  # where Gradio looks for it on a Space
    demo.space_id = None  # or its page adds a header that asks Hugging Face and Google's fonts
    demo.launch(server_name="0.0.0.0", **LAUNCH_OPTIONS)
