"""The page's handlers over Gradio's client."""

from gradio_client import handle_file

from testing_utils.paths import DRIVER, PORTRAIT


def left_over(workplace):
    """What handlers have not cleaned up (Gradio's client works in the same folder)."""
    return [path for path in workplace.glob("fsth-*") if not path.name.startswith("fsth-examples")]


def animate_arguments(portrait=PORTRAIT, driving=DRIVER, max_frames=3):
    return {
        "portraits": [{"image": handle_file(portrait), "caption": None}],
        "driving": handle_file(driving),
        "max_frames": max_frames,
        "api_name": "/animate",
    }
