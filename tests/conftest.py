import os

from hypothesis import settings

# Small tensors: threads cost more than they give, and two test processes share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A busy machine is no failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
