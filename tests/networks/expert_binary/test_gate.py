"""The gate: which expert it picks, and the gradient of the choice."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from networks.expert_binary import ExpertBinaryConv2d, Gate, winner_takes_all


def test_winner_takes_all_by_the_numbers():
    for gradient, expected in (
        ("softmax", [-0.1039581136, -0.1029113774, 0.2068694910]),
        ("sigmoid", [0.1966119332, 0.0903533195, 0.3149807562]),
    ):
        z = torch.tensor([[1.0, 3, 2]], dtype=torch.float64, requires_grad=True)
        phi = winner_takes_all(z, gradient=gradient)
        assert phi.tolist() == [[0, 1, 0]]
        phi.backward(torch.tensor([[1.0, 2, 3]], dtype=torch.float64))
        assert z.grad[0].tolist() == pytest.approx(expected, abs=5e-11)


@given(
    st.lists(st.lists(st.integers(-9, 9), min_size=4, max_size=4), min_size=1, max_size=5),
    st.sampled_from([0.02, 0.7, 1.0, 25.0]),
)
def test_winner_is_the_first_largest_and_rows_of_its_gradient_sum_to_zero(logits, temperature):
    z = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    phi = winner_takes_all(z, temperature)
    assert phi.tolist() == [[float(i == row.index(max(row))) for i in range(4)] for row in logits]
    d = torch.arange(z.numel(), dtype=torch.float64).view_as(z).square()
    phi.backward(d)
    assert z.grad.sum(1).abs().max() < 1e-9
    p = torch.stack([(row / temperature).softmax(0) for row in z.detach()])
    assert torch.allclose(z.grad, p * (d - (p * d).sum(1, keepdim=True)) / temperature, rtol=1e-9, atol=1e-10)


def test_counts_are_of_training_and_reset_by_none():
    gate, averages = Gate(3, 3), torch.eye(3)[[0, 1, 1, 1]]
    gate.weight.data.copy_(torch.eye(3))
    gate.bias.data.zero_()
    assert gate.counts is None
    gate(averages), gate(averages[:2])
    assert (gate.counts.tolist(), gate.counts.dtype) == ([2, 4, 0], torch.int64)
    gate.eval()(averages)
    assert gate.counts.tolist() == [2, 4, 0]
    gate.train().counts = None
    gate(averages[3:])
    assert gate.counts.tolist() == [0, 1, 0]
    assert set(gate.state_dict()) == {"weight", "bias"}


def test_gate_is_float32_and_chooses_the_same_under_autocast():
    torch.manual_seed(0)
    layer = ExpertBinaryConv2d(32, 8, 3, padding=1, groups=4).eval()
    layer.gate.weight.data.mul_(0.01).add_(1)  # nearly ties
    layer.gate.bias.data.zero_()
    x = (torch.randn(100, 32, 5, 5) + torch.randn(100, 32, 1, 1)).bfloat16()
    seen = []
    layer.gate.register_forward_hook(lambda gate, args, phi: seen.append((*args, phi)))
    with torch.no_grad():
        y = layer(x.float())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(layer(x).float(), y)  # sums of 72 signs are exact in bfloat16
            hasty = F.linear(x.mean((2, 3)), layer.gate.weight, layer.gate.bias).argmax(1)
    (average, phi), (average_under, phi_under) = seen
    assert torch.allclose(average_under, average, rtol=0, atol=1e-6)
    assert (phi_under.dtype, phi_under.tolist()) == (torch.float32, phi.tolist())
    assert not torch.equal(phi.argmax(1), hasty)  # a gate in bfloat16 chooses others
