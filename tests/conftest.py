import os

# Small tensors: threads cost more than they give, and two test processes share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
