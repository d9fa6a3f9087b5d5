"""The Expression tab: a portrait with another expression, slider by slider, and motions made of several."""

from functools import partial

import gradio as gr

from ...landmarks.expression import CONTROLS, Expression
from ..shipped import FIRST_PORTRAIT
from ..studio import HEAVY, IN_LINE
from . import Page
from .expressions import PAIRED, PRESETS, Expressions, by_name


EXPRESSION = "expression"  # the tab's id
GROUPS = {"head": "Head", "eyes": "Eyes and brows", "mouth": "Mouth"}
# While "both" is ticked, what stands for both.
BOTH = {"eye_right": "Eyes: shut ↔ wide", "brow_right": "Brows: down ↔ up"}
PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}
TEETH = "Teeth that the portrait does not show are made up; add one with an open mouth."


def expression_tab(page: Page) -> None:
    """Build the tab and wire it; the page's first portrait is shown as soon as the tab is."""
    portraits, expressions = page.portraits, Expressions(page.studio)
    with gr.Row():
        with gr.Column(min_width=280, elem_id="expression-column"):
            picture = gr.Image(
                label="Expression", format="jpeg", height=360, buttons=[], interactive=False, type="numpy",
                alt_text="The portrait with the expression chosen", elem_id="expression-picture",
            )  # fmt: skip
            with gr.Row():
                save = gr.Button("Save picture", size="sm", min_width=120, elem_id="save-picture")
                add = gr.Button("Add to the strip", size="sm", min_width=120, elem_id="add-to-strip")
        with gr.Column(min_width=280, elem_id="expression-controls"):
            with gr.Row(elem_id="chips"):
                chips = {
                    name: gr.Button(name, size="sm", min_width=80, elem_id=f"chip-{name.lower()}") for name in PRESETS
                }
            sliders, together = _sliders()
            gr.Markdown(TEETH, elem_id="teeth")
            saved = gr.File(label="Picture", interactive=False, visible=False, height=90, elem_id="saved-picture")
    strip, shown = gr.State([]), gr.State(False)
    with gr.Column(visible=False, elem_id="strip-panel") as strip_panel:
        pictures = gr.Gallery(
            label="Strip: one expression after the other", columns=6, height=150, object_fit="contain", format="jpeg",
            allow_preview=False, interactive=False, buttons=[], type="numpy", elem_id="strip",
        )  # fmt: skip
        with gr.Row():
            step = gr.Slider(0.2, 3, 0.8, step=0.1, label="Seconds from one to the next", elem_id="strip-step")
            loop = gr.Checkbox(True, label="The first follows on the last", elem_id="strip-loop")
        with gr.Row():
            make = gr.Button("Make a clip", variant="primary", min_width=120, elem_id="make-clip")
            keep = gr.DownloadButton("Save this motion", min_width=120, elem_id="save-expressions")
            empty = gr.Button("Empty the strip", min_width=120, elem_id="empty-strip")
        progress = gr.HTML(elem_id="strip-progress", elem_classes="job-progress")
        clip = gr.Video(
            label="Clip", interactive=False, autoplay=True, visible=False, height=360, elem_id="expression-clip"
        )

    inputs = [portraits.gallery, portraits.seen]
    preview = {
        "fn": expressions.preview,
        "inputs": [*inputs, together, *sliders.values()],
        "outputs": [picture, *(sliders[left] for left in PAIRED.values())],
        **HEAVY,
        **PRIVATE,
    }
    gr.on([slider.input for slider in sliders.values()], trigger_mode="always_last", **preview)
    for name, chip in chips.items():
        chip.click(partial(_show, PRESETS[name]), None, [*sliders.values(), together], queue=False, **PRIVATE).then(
            **preview
        )
    together.input(_pair, together, [sliders[name] for pair in PAIRED.items() for name in pair], **PRIVATE).then(
        **preview
    )
    _show_with_tab(page, portraits, shown, preview)

    named = by_name(expressions.save, ("portraits", "seen"))
    save.click(named, [*inputs, *sliders.values()], saved, api_name="express", **HEAVY).success(
        lambda: gr.update(visible=True), None, saved, **PRIVATE
    )
    add.click(expressions.add, [strip, pictures, picture, *sliders.values()], [strip, pictures], **PRIVATE).success(
        lambda: gr.update(visible=True), None, strip_panel, **PRIVATE
    )
    empty.click(
        lambda: ([], None, gr.update(value=None, visible=False), "", gr.update(visible=False)),
        None,
        [strip, pictures, clip, progress, strip_panel],
        **PRIVATE,
    )
    make.click(
        expressions.make_clip,
        [*inputs, strip, step, loop],
        [clip, progress],
        show_progress_on=progress,
        api_visibility="private",
        **IN_LINE,
    ).failure(lambda: "", None, progress, **PRIVATE)
    gr.on([strip.change, step.release, loop.change], expressions.save_motion, [strip, step, loop], keep, **PRIVATE)
    page.blocks.unload(expressions.forget)


def _sliders() -> tuple[dict[str, gr.Slider], gr.Checkbox]:
    """A slider for each control in three groups, and whether both eyes and brows go together."""
    sliders, together = {}, None
    for group, title in GROUPS.items():
        with gr.Accordion(title, open=group != "head", elem_id=f"group-{group}"):
            if group == "eyes":
                together = gr.Checkbox(True, label="Both eyes together, and both brows", elem_id="together")
            for name, control in CONTROLS.items():
                if control.group == group:
                    whole_numbers = control.high - control.low > 10  # degrees
                    sliders[name] = gr.Slider(
                        control.low,
                        control.high,
                        0,
                        step=1 if whole_numbers else 0.05,
                        label=BOTH.get(name, control.label),
                        visible=name not in PAIRED.values(),
                        buttons=[],
                        elem_id=f"control-{name}",
                        elem_classes="control",
                    )
    return {name: sliders[name] for name in CONTROLS}, together


def _pair(together: bool) -> list[dict]:
    """Updates of each pair of sliders: one for both, or each its own."""
    updates = []
    for right in PAIRED:
        updates += [
            gr.update(label=BOTH[right] if together else CONTROLS[right].label),
            gr.update(visible=not together),
        ]
    return updates


def _show(expression: Expression) -> list[dict]:
    """Updates of all sliders and of "together" for an expression."""
    together = all(getattr(expression, right) == getattr(expression, left) for right, left in PAIRED.items())
    updates = {name: {"value": getattr(expression, name)} for name in CONTROLS}
    for right, left in PAIRED.items():
        updates[right]["label"] = BOTH[right] if together else CONTROLS[right].label
        updates[left]["visible"] = not together
    return [*(gr.update(**update) for update in updates.values()), together]


def _show_with_tab(page: Page, portraits, shown: gr.State, preview: dict) -> None:
    """Draw when the tab is opened, and when the portraits change while it is; where there is none, the first of the
    package's."""

    def fill(pictures) -> tuple[dict, bool]:
        return pictures or [(page.studio.portrait(FIRST_PORTRAIT), None)], True

    tab, options = page.tabs[EXPRESSION], {"inputs": portraits.gallery, "outputs": [portraits.gallery, shown]}
    opened = gr.on([tab.select, page.animation.change.click], fill, **options, **PRIVATE)
    page.animation.change.click(lambda: gr.update(selected=EXPRESSION), None, page.bar, **PRIVATE)
    opened.success(**preview)
    portraits.look_after(opened.success)
    for name, other in page.tabs.items():
        if name != EXPRESSION:
            other.select(lambda: False, None, shown, queue=False, **PRIVATE)

    def redraw(request: gr.Request, is_shown: bool, *values) -> tuple:
        return preview["fn"](request, *values) if is_shown else (gr.skip(),) * 3

    portraits.key.change(**preview | {"fn": redraw, "inputs": [shown, *preview["inputs"]]})
