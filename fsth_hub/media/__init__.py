"""Pictures and video in and out, and how they are put together; knows no pipeline."""
