"""The browser demo as a Gradio page: `create_demo().launch(**LAUNCH_OPTIONS)`."""

import os


os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
# Read when torch is loaded. By default its threads spin while they wait for one another: where other programs, such as
# the visitor's own browser, hold a core, a frame then takes five times as much of the processor's time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from ..garbage import no_collection  # noqa: E402


with no_collection():
    from .page import create_demo
    from .style import LAUNCH_OPTIONS


__all__ = ["LAUNCH_OPTIONS", "create_demo"]
