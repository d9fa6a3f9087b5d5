"""What a session keeps of updates: no more than the page's own components."""

import gradio as gr


class SteadyBlocks(gr.Blocks):
    """
    Blocks whose sessions do not grow, and whose files are all known to the cleaning.

    For each update Gradio (6.31) makes a component anew for the session, under a new id and with a set of files of its
    own. Once it is given a value, the session keeps it under that id for good, and the files of that value are in no
    set that is cleaned. Here it has the id and the files of the component whose place it takes.
    """

    async def postprocess_data(self, block_fn, predictions, state):
        try:
            return await super().postprocess_data(block_fn, predictions, state)
        finally:
            for block in block_fn.outputs:
                if state is not None and not block.stateful and block._id in state:
                    current = state[block._id]
                    current._id, current.temp_files = block._id, block.temp_files
