"""GPUs that this PyTorch cannot use are refused with the remedy."""

from types import SimpleNamespace

import pytest
import torch

from commands.hardware import check_gpus
from networks import InputError


@pytest.fixture
def gpu(monkeypatch):
    def pretend(capability, built, precision="16-mixed"):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
        strategy = SimpleNamespace(root_device=torch.device("cuda"))
        return SimpleNamespace(strategy=strategy, device_ids=[0, 1], precision=precision)

    return pretend


def test_v100_with_a_build_that_lacks_it(gpu):
    with pytest.raises(InputError, match=r"Tesla V100 has compute capability 7.0, and .* begins at 7.5: .*CUDA 12.6"):
        check_gpus(gpu((7, 0), ["sm_75", "sm_80", "sm_100", "compute_120"]))


def test_v100_with_a_build_that_has_it(gpu):
    check_gpus(gpu((7, 0), ["sm_50", "sm_70", "sm_90a"]))
    with pytest.raises(InputError, match=r"Tesla V100 has no bf16: take --trainer.precision 16-mixed"):
        check_gpus(gpu((7, 0), ["sm_70"], "bf16-mixed"))
    check_gpus(gpu((8, 0), ["sm_70"], "bf16-mixed"))


def test_a_cpu_needs_none():
    check_gpus(SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu"))))
