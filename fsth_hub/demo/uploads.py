"""Uploads, and what was made of them, are deleted in time also while more of them come."""

import os

import gradio as gr


class FileSet(set):
    """Names of files that may become more while another thread goes through them; no folders, which a program may have
    named in place of its upload: what cannot be deleted as a file would be the last that Gradio tried to delete."""

    def __iter__(self):
        return (name for name in set.__iter__(self.copy()) if not os.path.isdir(name))


def keep_cleaning(demo: gr.Blocks) -> None:
    """
    Keep Gradio's scheduled cleaning alive; to be called when the page is complete.

    It goes through the sets of a page's files in a thread of its own (gradio 6.31). Were a file added meanwhile, as
    the Live tab does several times a second, it would fail, and delete nothing more until the app is started anew.
    """
    for block in demo.blocks.values():
        if hasattr(block, "temp_files"):
            block.temp_files = FileSet(block.temp_files)
    demo.upload_file_set = FileSet(demo.upload_file_set)
    made = [block.temp_files for block in demo.blocks.values() if hasattr(block, "temp_files")]
    demo.temp_file_sets = [demo.upload_file_set, *made]
