"""The browser demo as a Gradio page: `create_demo().launch(**LAUNCH_OPTIONS)`."""

import os


os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported

from .page import create_demo  # noqa: E402
from .style import LAUNCH_OPTIONS  # noqa: E402


__all__ = ["LAUNCH_OPTIONS", "create_demo"]
