"""The page: portraits on the left, what can be done with them in tabs beside them."""

import gradio as gr

from .inputs import MAX_SECONDS
from .jobs import MAX_WAITING
from .opening import opening, stand_still
from .portrait_panel import portrait_panel
from .studio import Studio
from .tabs import Page
from .tabs.animate_tab import animate_tab
from .tabs.expression_tab import EXPRESSION, expression_tab
from .tabs.inspect_tab import inspect_tab
from .tabs.live_tab import LIVE, live_tab
from .tabs.person_tab import person_tab
from .updates import SteadyBlocks
from .uploads import keep_cleaning


# By id: a tab's label, and the function that builds and wires it; in the page's order.
TABS = {
    "animate": ("Animate", animate_tab),
    EXPRESSION: ("Expression", expression_tab),
    "person": ("Your person", person_tab),
    LIVE: ("Live", live_tab),
    "check": ("Check a file", inspect_tab),
}
QUEUE_SIZE = 16  # of Gradio's own queue
DELETE_CACHE = (600, 2400)  # every ten minutes, what is older than forty: all uploads are gone within the hour
INTRODUCTION = """
# Few-shot talking heads
A portrait moves as you do.
"""
RESPONSIBLE_USE = f"""
Use portraits only of people who agreed to it, or who lived long ago. Every clip says in its file that it is
AI-generated; say so too where you show it. What you upload stays on the machine that runs this page, unless you
publish it, and is deleted within the hour. One clip is generated at a time, of {MAX_SECONDS} s at most; up to
{MAX_WAITING} requests wait in line.
"""


def create_demo(*models) -> gr.Blocks:
    """
    Build the page.

    Args:
        models ([`FsthPipeline`], `str` or `Path`): What to animate with: pipelines, folders or hub ids, of which the
            visitor chooses; by default the bundled model. The first is loaded in the background.

    Returns:
        `gr.Blocks`, to be launched with `LAUNCH_OPTIONS`.
    """
    studio = Studio(models)
    with SteadyBlocks(title="Few-shot talking heads", analytics_enabled=False, delete_cache=DELETE_CACHE) as demo:
        gr.Markdown(INTRODUCTION, elem_id="introduction")
        opening("opening-on-phone")  # where the result lies further down, and a clip that is not seen does not begin
        stand_still(demo)
        with gr.Row():
            with gr.Column(scale=1, min_width=300, elem_id="portrait-column"):
                portraits = portrait_panel(studio)
            with gr.Column(scale=2, min_width=300), gr.Tabs(elem_id="tabs") as bar:
                tabs = {name: gr.Tab(label, id=name) for name, (label, _) in TABS.items()}
                page = Page(studio, portraits, demo, tabs, bar)
                for name, (_, build) in TABS.items():
                    with tabs[name]:
                        build(page)
        gr.Markdown(RESPONSIBLE_USE, elem_id="responsible-use")
        demo.unload(studio.stop)
    keep_cleaning(demo)
    demo.studio = studio
    return demo.queue(max_size=QUEUE_SIZE)
