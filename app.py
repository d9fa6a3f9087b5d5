"""The browser demo: portraits and a driving clip in, a talking head out.

python app.py            # then open http://127.0.0.1:7860
"""

import argparse
import os
import queue
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np


os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
import gradio as gr  # noqa: E402

from fsth_hub.errors import FsthError  # noqa: E402


EXAMPLES = Path(__file__).parent / "fsth_hub" / "examples"
PREVIEW_EVERY = 3  # frames
INTRODUCTION = """
# Few-shot talking heads
A portrait moves as the person in a driving clip does.

1. **Portraits**: one or more pictures of one person, face to the camera.
2. **Driving clip**: a video of somebody who speaks, from a file or your camera.
3. **Animate**: watch it being drawn; then the clip plays, with the driver's sound.
"""
RESPONSIBLE_USE = (
    "Use portraits only of people who agreed to it, or who lived long ago. Every clip says in its file that it is "
    "AI-generated; say so too where you show it. Uploads are deleted within two hours."
)
# The system's own fonts: the page asks no other host for anything.
LAUNCH_OPTIONS = {
    "theme": gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
    "css": """
        .gradio-container {max-width: 1080px !important; margin: auto}
        #driving video {max-height: 240px}
        #preview img {width: 100%; height: 100%; object-fit: contain}
        #responsible-use {opacity: 0.75}
    """,
    "max_file_size": "64mb",
    "footer_links": [],
    "ssr_mode": False,
}


class Animator:
    """A pipeline for the page's handlers; the bundled one is loaded while the visitor still looks for pictures.

    Args:
        pipeline ([`FsthPipeline`], *optional*): What to animate with.
    """

    def __init__(self, pipeline=None):
        # One thread does all the work: detectors serve one thread at a time.
        self.worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="animator")
        self.pipeline = self.worker.submit(self._load, pipeline)

    @staticmethod
    def _load(pipeline):
        if pipeline is None:
            from fsth_hub.pipeline_fsth import FsthPipeline

            pipeline = FsthPipeline.from_pretrained()
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def animate(
        self,
        portraits: list[tuple[str, str | None]] | None,
        driving: str | None,
        motion: str,
        max_frames: float | None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (how Gradio hands it over)
    ) -> Iterator[tuple[dict, dict]]:
        """Animate the portraits; gives updates of preview and result, every few frames and at the end."""
        if not portraits:
            raise gr.Error("Add at least one portrait.", print_exception=False)
        if not driving:
            raise gr.Error("Add a driving clip.", print_exception=False)
        drawn, stopped = queue.SimpleQueue(), threading.Event()

        def show(index: int, count: int, frame: np.ndarray) -> None:
            if stopped.is_set():
                raise InterruptedError
            drawn.put((index, count, frame))

        # Gradio copies what a handler gives into its cache, where it is deleted in time; the original goes at once.
        with tempfile.TemporaryDirectory(prefix="fsth-") as folder:
            path = Path(folder, "talking_head.mp4")
            progress(0, desc="Looking at the portraits and the clip")
            job = self.worker.submit(
                self._run,
                [portrait for portrait, _ in portraits],
                driving,
                motion=motion,
                num_frames=int(max_frames) if max_frames else None,
                output_path=path,
                callback=show,
            )
            job.add_done_callback(lambda _: drawn.put(None))
            try:
                for index, count, frame in iter(drawn.get, None):
                    if index % PREVIEW_EVERY == 0:
                        label = f"Drawing frame {index + 1} of {count}"
                        yield gr.update(value=frame, label=label, visible=True), gr.update(visible=False)
                job.result()
                yield show_result(str(path))
            except FsthError as error:
                raise gr.Error(str(error), duration=None, print_exception=False) from error
            finally:  # also where the visitor cancels: the clip being written is given up before its folder goes
                stopped.set()
                if not job.cancel():
                    job.exception()

    def _run(self, *args, **kwargs):
        return self.pipeline.result()(*args, **kwargs)


def show_result(path: str | None = None) -> tuple[dict, dict]:
    """The updates that put a clip, or nothing, where the preview was."""
    return gr.update(value=None, visible=False), gr.update(value=path, visible=True)


def create_demo(pipeline=None) -> gr.Blocks:
    """
    Build the page.

    Args:
        pipeline ([`FsthPipeline`], *optional*): By default the bundled model, loaded in the background.

    Returns:
        `gr.Blocks`, to be launched with `LAUNCH_OPTIONS`.
    """
    animator = Animator(pipeline)
    with gr.Blocks(title="Few-shot talking heads", analytics_enabled=False, delete_cache=(3600, 3600)) as demo:
        gr.Markdown(INTRODUCTION, elem_id="introduction")
        with gr.Row(elem_id="inputs-and-result"):
            with gr.Column(elem_id="inputs"):
                portraits = gr.Gallery(
                    label="Portraits",
                    type="filepath",
                    format="png",
                    file_types=["image"],
                    sources=["upload", "webcam", "clipboard"],
                    columns=3,
                    height=260,
                    object_fit="contain",
                    elem_id="portraits",
                )
                driving = gr.Video(label="Driving clip", sources=["upload", "webcam"], elem_id="driving")
                gr.Examples(
                    [[[str(EXAMPLES / "astronaut.jpg")], str(EXAMPLES / "driver.mp4")]],
                    inputs=[portraits, driving],
                    label="Or try these: an astronaut (NASA, public domain) and a generated driver",
                    elem_id="examples",
                )
                with gr.Accordion("Options", open=False, elem_id="options"):
                    motion = gr.Radio(
                        [("Relative", "relative"), ("Absolute", "absolute")],
                        value="relative",
                        label="Motion",
                        info="Relative: the portrait changes as the driver does. Absolute: it takes the driver's pose "
                        "as it is, and with it the shape of the driver's face.",
                        elem_id="motion",
                    )
                    max_frames = gr.Number(
                        label="Maximum number of frames",
                        info="Empty for the whole clip.",
                        value=None,
                        precision=0,
                        minimum=1,
                        elem_id="max-frames",
                    )
                with gr.Row(elem_id="buttons"):
                    animate = gr.Button("Animate", variant="primary", scale=2, min_width=100, elem_id="animate")
                    cancel = gr.Button("Cancel", scale=1, min_width=100, elem_id="cancel")
            with gr.Column(elem_id="outputs"):
                result = gr.Video(label="Result", interactive=False, autoplay=True, height=400, elem_id="result")
                preview = gr.Image(
                    label="Preview",
                    format="jpeg",
                    height=400,
                    buttons=[],
                    interactive=False,
                    visible=False,
                    elem_id="preview",
                )
        gr.Markdown(RESPONSIBLE_USE, elem_id="responsible-use")

        animation = animate.click(
            animator.animate,
            inputs=[portraits, driving, motion, max_frames],
            outputs=[preview, result],
            api_name="animate",
            concurrency_limit=1,
            show_progress_on=result,
        )
        cancellation = cancel.click(None, cancels=animation, api_name="cancel")
        for ended_early in (cancellation.then, animation.failure):
            ended_early(show_result, outputs=[preview, result], api_visibility="private")
    return demo.queue(max_size=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets others on your network in")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--share", action="store_true", help="make a public link through Gradio's servers")
    parser.add_argument("--model", help="folder or hub id; by default the model in the package")
    args = parser.parse_args()
    pipeline = None
    if args.model:
        from fsth_hub.pipeline_fsth import FsthPipeline

        try:
            pipeline = FsthPipeline.from_pretrained(args.model)
        except FsthError as error:
            sys.exit(f"app.py: error: {error}")
    demo = create_demo(pipeline)
    demo.launch(server_name=args.host, server_port=args.port, share=args.share, **LAUNCH_OPTIONS)


if __name__ == "__main__":
    main()
