"""What tests share: tiny networks and pipelines, clips, shards, faces, a hub on loopback, a browser, contracts."""

import pytest


pytest.register_assert_rewrite("testing_utils.contracts", "testing_utils.command_line")
