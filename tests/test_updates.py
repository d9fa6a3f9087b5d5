"""What a visitor's session keeps of the page's updates."""

import asyncio
from functools import partial

import numpy as np
from gradio.state_holder import SessionState

from fsth_hub.demo import create_demo
from fsth_hub.demo.tabs.animate_tab import Stages
from fsth_hub.demo.tabs.animator import Shown
from testing_utils.clips import make_clip
from testing_utils.pipelines import make_pipeline


def test_results_that_follow_each_other_leave_nothing_behind_and_are_all_cleaned(tmp_path, monkeypatch):
    """Each is hidden while the next is generated; in the end the session has the page's components and no others, and
    the clips lie where they are deleted from."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    demo, given = create_demo(make_pipeline()), []
    state, fns = SessionState(demo), list(demo.fns.values())
    (animate,) = (fn for fn in fns if fn.api_name == "animate")
    stages = [fn for fn in fns if isinstance(fn.fn, partial) and isinstance(fn.fn.func, Stages)]
    (beside,) = (fn for fn in fns if fn.name == "_beside_if_any")

    def show(fn, predictions) -> list:
        return asyncio.run(demo.postprocess_data(fn, predictions, state))

    for shade in (0, 100, 200):
        clip = tmp_path / f"{shade}.mp4"
        make_clip(clip, [np.full((64, 64, 3), shade, np.uint8)] * 2)
        for fn in stages:
            show(fn, fn.fn())
        given.append(show(animate, list(Shown(result=str(clip))))[0]["path"])
        show(beside, beside.fn(None))
    assert len(stages) == 2 and len(set(given)) == 3
    assert state.blocks_config.blocks.keys() == demo.blocks.keys()
    assert set(given) <= set().union(*demo.temp_file_sets)
