"""The page's tabs: each is a function that is given the page, and builds and wires what its tab holds."""

from dataclasses import dataclass

import gradio as gr

from ..portrait_panel import PortraitPanel
from ..studio import Studio


@dataclass(frozen=True)
class AnimatePanel:
    """What the Animate tab shares: what drives, and who is animated.

    Args:
        driving, driving_seen: The clip, and the session's `list[Seen]` of it.
        movement, motion_file: The motion in its place: one of the package's, or a file.
        person: The choice of who is animated.
        change: The button that leads to the Expression tab.
    """

    driving: gr.Video
    driving_seen: gr.State
    movement: gr.Radio
    motion_file: gr.File
    person: gr.Radio
    change: gr.Button


@dataclass(eq=False)
class Page:
    """What a tab is built with.

    Args:
        studio: What does the work.
        portraits: The portraits' part of the page, beside the tabs.
        blocks: The whole page, for its own events, such as `unload`.
        tabs: All tabs by their id, also those that are still empty.
        bar: What holds them.
        animation: What the Animate tab shares, for the tabs that are built after it.
    """

    studio: Studio
    portraits: PortraitPanel
    blocks: gr.Blocks
    tabs: dict[str, gr.Tab]
    bar: gr.Tabs
    animation: AnimatePanel | None = None
