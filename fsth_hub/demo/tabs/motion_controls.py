"""How a driver's motion goes over to the portrait: the controls that the Animate and the Live tab have alike."""

import gradio as gr

from ...landmarks.motion import MAX_STRENGTH
from ...landmarks.regions import REGIONS


def motion_controls(does: str, whose: str, prefix: str = "") -> tuple[gr.Radio, gr.Slider, gr.CheckboxGroup]:
    """
    Motion, its strength and the regions that move; the last two count for relative motion alone.

    Args:
        does, whose: The driver in the words of the page, as in "you do" and "your".
        prefix: Of the elements' ids.
    """
    motion = gr.Radio(
        [("Relative", "relative"), ("Absolute", "absolute")],
        value="relative",
        label="Motion",
        info=f"Relative: the portrait changes as {does}. Absolute: it takes {whose} pose as it is, and with it the "
        f"shape of {whose} face.",
        elem_id=f"{prefix}motion",
    )
    strength = gr.Slider(
        0,
        MAX_STRENGTH,
        1,
        step=0.05,
        label="Motion strength",
        info=f"1 moves as far as {does}, 0 not at all. For relative motion.",
        elem_id=f"{prefix}motion-strength",
    )
    regions = gr.CheckboxGroup(
        [(name.capitalize(), name) for name in REGIONS],
        value=list(REGIONS),
        label="What moves",
        info="What is not ticked stays as in the portrait. For relative motion.",
        elem_id=f"{prefix}regions",
    )
    motion.change(
        lambda motion: [gr.update(interactive=motion == "relative")] * 2,
        motion,
        [strength, regions],
        api_visibility="private",
        show_progress="hidden",
    )
    return motion, strength, regions
