"""What all tabs share: the models, the thread that runs them, and the detector that looks at inputs meanwhile."""

import hashlib
import shutil
import tempfile
import threading
from pathlib import Path

import gradio as gr

from ..garbage import no_collection
from ..landmarks import Face, get_detector, set_upright
from ..landmarks.orientation import Upright
from ..media.motion_files import SHIPPED, shipped_path
from ..models.errors import FsthError
from .jobs import Worker
from .pace import Pace
from .people import People
from .shipped import FIRST_PORTRAIT, PORTRAITS, portrait_path


# Pictures that are drawn at once share one place in Gradio's queue. Jobs wait in the worker's line instead, which
# knows how long each of them takes.
HEAVY = {"concurrency_limit": 1, "concurrency_id": "heavy"}
IN_LINE = {"concurrency_limit": None}
BUNDLED = "bundled"


class Studio:
    """
    The page's workshop, shared by all visitors; it knows nothing of any of them.

    Args:
        models (`list`): What visitors may choose from: pipelines, folders or hub ids. The first is loaded at once, in
            the background, while the visitor still looks for pictures. None: the bundled model.
    """

    def __init__(self, models: tuple = ()):
        self._models = {getattr(model, "model_name", str(model)): model for model in models} or {BUNDLED: None}
        self._loaded: tuple[str, object] = ("", None)
        self._detector, self._detecting = None, threading.Lock()
        self._kept = tempfile.TemporaryDirectory(prefix="fsth-examples-")
        examples = [*(portrait_path(portrait.name) for portrait in PORTRAITS), *map(shipped_path, SHIPPED)]
        self._example_files = {digest(path) for path in examples}
        self._content = None
        self.worker, self.people, self.pace = Worker(), People(), Pace()
        self.ready = self.worker.submit(self._get_ready)

    @property
    def model_names(self) -> list[str]:
        return list(self._models)

    def _get_ready(self):
        """Load the first model and see how quick it is here."""
        pipe = self.pipeline()
        self.pace.measure(pipe, str(portrait_path(FIRST_PORTRAIT)))
        return pipe

    def portrait(self, name: str) -> str:
        """A shipped portrait, as `copy_of`."""
        return self.copy_of(portrait_path(name))

    def copy_of(self, file: Path) -> str:
        """A shipped file where Gradio may take it from, wherever the package is installed."""
        path = Path(self._kept.name, file.name)
        if not path.is_file():
            shutil.copyfile(file, path)
        return str(path)

    def pipeline(self, name: str | None = None):
        """The pipeline of this name, by default the first; call it on the worker's thread. One is kept in memory."""
        name = name or self.model_names[0]
        if name not in self._models:
            raise FsthError(f"This page has no model '{name}'; choose one of {', '.join(self._models)}.")
        if self._loaded[0] != name:
            pipe = self._models[name]
            with no_collection():
                from ..device import default_device, default_dtype
                from ..pipelines.pipeline_fsth import FsthPipeline

                if not isinstance(pipe, FsthPipeline):
                    device = default_device()
                    pipe = FsthPipeline.from_pretrained(pipe, dtype=default_dtype(device)).to(device)
            pipe.set_progress_bar_config(disable=True)
            self._loaded = (name, pipe)
        return self._loaded[1]

    def content(self):
        """What fine-tuning compares frames by, which is kept; call it on the worker's thread."""
        from ..finetuning.loop import load_content

        if self._content is None:
            self._content = load_content()
        return self._content

    def faces(self, image) -> list[Face]:
        """The faces of a picture (H x W x 3 uint8), the largest first. Does not wait for the worker."""
        with self._detecting:
            self._detector = self._detector or get_detector()
            return self._detector.detect(image)

    def upright(self, image) -> Upright:
        """A picture set upright, and its faces. Does not wait for the worker."""
        with self._detecting:
            self._detector = self._detector or get_detector()
            return set_upright(image, self._detector)

    def stop(self, request: gr.Request) -> None:
        """Stop what a visitor has running: they cancelled it, or closed the page."""
        self.worker.stop(request.session_hash)

    def kept_result(self, files: list[str], settings: dict) -> Path | None:
        """The folder in which an example's result is kept for the next visitor; None for everybody's own files."""
        digests = [digest(file) for file in files]
        if not digests or not self._example_files.issuperset(digests):
            return None
        return Path(self._kept.name, hashlib.sha256(repr((digests, settings)).encode()).hexdigest())


def digest(path: str | Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
