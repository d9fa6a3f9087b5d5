"""What moves as soon as the page is there: a clip that was generated beforehand."""

import gradio as gr

from .shipped import OPENING


HTML = f"""
<video autoplay muted loop playsinline controls src="gradio_api/file={OPENING.as_posix()}"
aria-label="A painting, landmarks that move, and the painting moving as they do; AI-generated"></video>
<p>A portrait, landmarks that move, and the portrait moving as they do. AI-generated.</p>
"""
STILL = """() => {
    if (matchMedia('(prefers-reduced-motion: reduce)').matches)
        setTimeout(() => document.querySelectorAll('.opening video').forEach(video => video.pause()), 500)
}"""


def opening(elem_id: str) -> gr.HTML:
    """The clip, muted (or browsers would not begin it), over and over."""
    gr.set_static_paths([OPENING])
    return gr.HTML(HTML, elem_id=elem_id, elem_classes="opening")


def stand_still(blocks: gr.Blocks) -> None:
    """Heed the visitor's wish for less motion."""
    blocks.load(None, None, None, js=STILL, api_visibility="private")
