"""The page's tabs: each is a function that is given the page, and builds and wires what its tab holds."""

from dataclasses import dataclass

import gradio as gr

from ..inputs import PortraitPanel
from ..studio import Studio


@dataclass(frozen=True)
class AnimatePanel:
    """What the Animate tab shares: its clip, the session's `list[Seen]` of it, and the choice of who is animated."""

    driving: gr.Video
    driving_seen: gr.State
    person: gr.Radio


@dataclass(eq=False)
class Page:
    """What a tab is built with.

    Args:
        studio: What does the work.
        portraits: The portraits' part of the page, beside the tabs.
        blocks: The whole page, for its own events, such as `unload`.
        tabs: All tabs by their id, also those that are still empty.
        animation: What the Animate tab shares, for the tabs that are built after it.
    """

    studio: Studio
    portraits: PortraitPanel
    blocks: gr.Blocks
    tabs: dict[str, gr.Tab]
    animation: AnimatePanel | None = None
