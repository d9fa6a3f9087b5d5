"""What can be set under Options of the Animate tab."""

import gradio as gr

from ...landmarks.smoothing import DEFAULT_SMOOTHING, MAX_SMOOTHING
from ...pipelines.names import DEFAULT_SIZE
from ..inputs import MAX_SECONDS
from ..studio import Studio
from .animator import SIZES
from .motion_controls import motion_controls


def options_panel(studio: Studio) -> list[gr.components.Component]:
    """The options, closed at first, in the order of `Settings`."""
    with gr.Accordion("Options", open=False, elem_id="options"):
        motion, strength, regions = motion_controls("the driver does", "the driver's")
        smoothing = gr.Slider(
            0,
            MAX_SMOOTHING,
            DEFAULT_SMOOTHING,
            step=0.01,
            label="Smoothing",
            info="Seconds, against a trembling of the landmarks; more makes the motion softer.",
            elem_id="smoothing",
        )
        paste_back = gr.Checkbox(
            False,
            label="Paste back into the photograph",
            info="The first portrait comes to life as a whole picture.",
            elem_id="paste-back",
        )
        watermark = gr.Checkbox(
            True,
            label='Visible "AI-generated" mark',
            info="In the lower right corner. The file says so too, with the mark or without.",
            elem_id="watermark",
        )
        size = gr.Radio(
            [(f"{side} x {side}", side) for side in SIZES],
            value=DEFAULT_SIZE,
            label="Size",
            info="Pixels, never more than the portrait has. "
            f"Pasted back, {DEFAULT_SIZE} stands for as many as the photograph has.",
            elem_id="size",
        )
        max_frames = gr.Number(
            label="Maximum number of frames",
            info=f"Empty for the whole clip, of which {MAX_SECONDS} s at most are used.",
            value=None,
            precision=0,
            minimum=1,
            elem_id="max-frames",
        )
        model = gr.Dropdown(
            studio.model_names,
            value=studio.model_names[0],
            label="Model",
            visible=len(studio.model_names) > 1,
            elem_id="model",
        )
    return [motion, max_frames, model, strength, smoothing, paste_back, watermark, size, regions]
