import os
from pathlib import Path

import pytest

# Small tensors: threads cost more than they give, and two test processes share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY
