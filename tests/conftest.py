import os
import sys

import pytest
from hypothesis import settings

# Small tensors: threads cost more than they give, and two test processes share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No network: weights are refused at once, not after a minute of tries. It is read when the hub is imported.
os.environ["HF_HUB_OFFLINE"] = "1"

# A busy machine is no failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def users_modules_are_this_tests(monkeypatch):
    """Several tests write a module my_own into their working directory, where `frugal` looks for users' modules."""
    monkeypatch.setattr(sys, "path", sys.path.copy())
    sys.modules.pop("my_own", None)
