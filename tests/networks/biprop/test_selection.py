"""Which weights are kept, against a literal stable sort."""

import copy
import math
import pickle
from types import SimpleNamespace

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import networks
from networks import complexity
from networks.biprop import set_keep_fraction, subnet_layers
from networks.biprop.selection import (
    GlobalSelection,
    keep_mask,
    kept_count,
    mask_by_partition,
    mask_by_sort,
    scheduled_keep_fraction,
)


def literal_mask(scores, kept):
    order = sorted(range(scores.numel()), key=lambda i: abs(scores.flatten()[i].item()))  # Python's sort is stable
    mask = torch.ones(scores.numel(), dtype=torch.bool)
    mask[order[: scores.numel() - kept]] = False
    return mask.view(scores.shape)


def test_count_is_evaluated_in_double_precision():
    assert kept_count(0.8, 2560) == 2049  # 1 - 0.8 lies below 0.2
    assert kept_count(1.0, 7) == 7
    assert kept_count(1e-20, 7) == 0
    sizes = (3456, 147456, 294912, 589824, 1179648, 2359296, 81920)  # VGG-Small, spec 6.2
    assert [kept_count(0.05, n) for n in sizes] == [173, 7373, 14746, 29492, 58983, 117965, 4096]


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=40), st.data())
def test_mask_equals_the_literal_sort_with_any_ties(levels, data):
    scores = torch.tensor(levels, dtype=torch.float32)
    kept = data.draw(st.integers(0, len(levels)))
    assert torch.equal(keep_mask(scores, kept), literal_mask(scores, kept))


@given(st.lists(st.integers(-2, 2) | st.floats(width=32, allow_nan=False), min_size=1, max_size=40), st.data())
def test_both_backends_equal_the_literal_sort(values, data):
    """Ties, zeros of both signs, denormals and infinities."""
    scores = torch.tensor(values, dtype=torch.float32)
    kept = data.draw(st.integers(1, len(values)))
    expected = literal_mask(scores, kept)
    assert torch.equal(mask_by_sort(scores.abs(), kept), expected)
    assert torch.equal(mask_by_partition(scores.abs(), kept), expected)


@pytest.mark.parametrize("kept", [1, 1000, 499_999, 999_999])
@pytest.mark.parametrize("kind", ["random", "tied", "denormal", "zero", "nan"])
def test_backends_agree_on_a_million_scores(kind, kept):
    torch.manual_seed(0)
    uniform = torch.rand(1_000_000)
    magnitude = {
        "random": uniform,
        "tied": (uniform * 50).round(),
        "denormal": uniform * 1e-40,
        "zero": torch.zeros_like(uniform),
        "nan": torch.where(uniform < 0.3, torch.nan, uniform),
    }[kind]
    mask = mask_by_partition(magnitude, kept)
    assert int(mask.sum()) == kept
    assert torch.equal(mask, mask_by_sort(magnitude, kept))


def test_constant_scores_keep_the_last_positions():
    assert keep_mask(torch.full((2, 3), -0.5), 2).tolist() == [[False] * 3, [False, True, True]]


def test_ranking_follows_the_row_major_index_in_channels_last():
    torch.manual_seed(0)
    scores = torch.randint(-3, 4, (4, 3, 3, 3)).float()
    assert torch.equal(keep_mask(scores.to(memory_format=torch.channels_last), 50), literal_mask(scores, 50))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    scores = torch.randn(200, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(keep_mask(scores, 77), literal_mask(scores, 77))


def test_masks_of_smaller_fractions_are_nested():
    scores = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    small, large = keep_mask(scores, kept_count(0.2, 5000)), keep_mask(scores, kept_count(0.5, 5000))
    assert bool((large | ~small).all())


# One threshold for the whole network, spec 2.6.


def literal_global_masks(all_scores, k):
    """All |S| in one list: what is strictly greater than the j-th smallest, counted from 1, is kept."""
    magnitudes = sorted(abs(value) for scores in all_scores for value in scores.flatten().tolist())
    pruned = int((1 - k) * len(magnitudes))
    threshold = magnitudes[pruned - 1] if pruned else -1
    return [scores.abs() > threshold for scores in all_scores]


@given(st.lists(st.lists(st.integers(-5, 5), min_size=1, max_size=12), min_size=1, max_size=4), st.data())
def test_global_masks_equal_the_literal_ones_with_any_ties(levels, data):
    k = data.draw(st.sampled_from([1e-9, 0.05, 0.1, 0.3, 0.5, 0.8, 0.999, 1.0]))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]))
    layers = [SimpleNamespace(scores=torch.tensor(level).to(dtype) / 7, keep_fraction=k) for level in levels]
    selection = GlobalSelection(layers)
    selection.update()
    masks = [selection.mask(layer.scores) for layer in layers]
    for mask, expected in zip(masks, literal_global_masks([layer.scores for layer in layers], k), strict=True):
        assert torch.equal(mask, expected)
    n = sum(map(len, levels))
    magnitudes = sorted(abs(level) for levels_of_one in levels for level in levels_of_one)
    pruned = int((1 - k) * n)
    tied_beyond = magnitudes[pruned:].count(magnitudes[pruned - 1]) if pruned else 0
    assert sum(int(mask.sum()) for mask in masks) == n - pruned - tied_beyond


def test_global_selection_keeps_exactly_the_fraction_of_distinct_scores_and_everything_at_one():
    torch.manual_seed(0)
    layers = [SimpleNamespace(scores=torch.randn(size, dtype=torch.float64), keep_fraction=0.8) for size in (2000, 560)]
    selection = GlobalSelection(layers)
    selection.update()
    assert sum(int(selection.mask(layer.scores).sum()) for layer in layers) == 2049  # 1 - 0.8 lies below 0.2
    layers[0].keep_fraction = 1.0
    layers[0].scores[:3] = 0
    selection.update()
    assert all(bool(selection.mask(layer.scores).all()) for layer in layers)


def global_ticket(k=0.3, **options):
    """Two layers of 600 and 200 scores, the first with the larger fan-in."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 10))
    networks.biprop.apply(net, k, selection="global", **options)
    return net


def literal_global_weights(net, k):
    layers = list(subnet_layers(net).values())
    masks = literal_global_masks([layer.scores for layer in layers], k)
    return [
        layer.weight.sign() * mask * ((layer.weight.abs() * mask).sum() / max(int(mask.sum()), 1))
        for layer, mask in zip(layers, masks, strict=True)
    ]


@pytest.mark.parametrize("gain_count", ["kept", "floor_kn"])  # the released count of one layer says nothing here
def test_gain_of_each_layer_is_over_its_true_count(gain_count):
    net = global_ticket(gain_count=gain_count)
    layers = list(subnet_layers(net).values())
    kept = [layer.kept for layer in layers]
    assert sum(kept) == 240
    assert kept[0] / 600 < 0.3 < kept[1] / 200
    for layer, value in zip(layers, literal_global_weights(net, 0.3), strict=True):
        assert torch.allclose(layer.effective_weight(), value, rtol=1e-6)
        assert layer.gain().item() == pytest.approx(layer.weight[layer.mask()].abs().mean().item(), rel=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_every_forward_selects_by_the_present_scores(training):
    net, x = global_ticket().train(training), torch.randn(5, 30)

    def literal(k):
        first, second = literal_global_weights(net, k)
        return F.relu(x @ first.T) @ second.T

    assert torch.allclose(net(x), literal(0.3), atol=1e-6)
    net[2].scores.data *= 10  # now the first layer has to give
    before = net[0].kept
    assert torch.allclose(net(x), literal(0.3), atol=1e-6)
    net[0].scores.data.copy_(net[0].scores.data.flip(0))
    assert torch.allclose(net(x), literal(0.3), atol=1e-6)
    set_keep_fraction(net, 0.7)
    assert torch.allclose(net(x), literal(0.7), atol=1e-6)
    assert net[0].kept > before
    assert net[0].kept + net[2].kept == 560


def test_training_step_under_global_selection():
    net, x = global_ticket(), torch.randn(5, 30)
    values = [value.detach().requires_grad_() for value in literal_global_weights(net, 0.3)]
    (F.relu(x @ values[0].T) @ values[1].T).square().sum().backward()
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.01)
    before = copy.deepcopy(net)
    net(x).square().sum().backward()
    for layer, value in zip(subnet_layers(net).values(), values, strict=True):
        expected = value.grad * layer.weight * layer.scores.sign()
        assert torch.allclose(layer.scores.grad, expected, rtol=1e-4, atol=1e-6)
        assert bool((layer.scores.grad[~layer.mask()] != 0).any())  # pruned entries can return
    optimizer.step()
    for layer, old in zip(subnet_layers(net).values(), subnet_layers(before).values(), strict=True):
        assert torch.equal(layer.weight, old.weight)
        assert torch.allclose(layer.scores, old.scores - 0.01 * layer.scores.grad, atol=1e-7)


def test_copies_select_by_their_own_scores():
    net = global_ticket()
    masks = [layer.mask() for layer in subnet_layers(net).values()]
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert all(torch.equal(layer.mask(), mask) for layer, mask in zip((twin[0], twin[2]), masks, strict=True))
        twin[0].scores.data *= 100
        twin(torch.ones(1, 30))
        assert (twin[0].kept, twin[2].kept) == (240, 0)
        net(torch.ones(1, 30))
        assert all(torch.equal(layer.mask(), mask) for layer, mask in zip((net[0], net[2]), masks, strict=True))


def test_cost_under_global_selection_has_the_true_counts():
    net = global_ticket()
    kept = [int(mask.sum()) for mask in literal_global_masks([net[0].scores, net[2].scores], 0.3)]
    report = complexity.count(net, (30,))
    assert [row.params for row in report.layers] == kept
    assert [row.kept_flops for row in report.layers] == kept
    assert (report.dense_params, report.size_bits) == (800, 800 + 240 + 2 * 32)


def test_a_layer_that_keeps_nothing_is_zero_and_named():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1000, 10), nn.Linear(10, 1000))  # scores up to 0.03 and 0.3
    with pytest.warns(UserWarning, match=r"^0 keep no weight and give zeros: take a larger keep fraction"):
        networks.biprop.apply(net, 0.1, selection="global")
    assert (net[0].kept, net[1].kept, net[0].gain()) == (0, 2000, 0)
    for value in (net[0].effective_weight(), net[0].train()(torch.ones(2, 1000)), net.eval()(torch.ones(2, 1000))):
        assert bool((value == 0).all())
    assert complexity.count(net, (1000,)).params == 2000
    edge_popup = nn.Sequential(nn.Linear(1000, 10), nn.Linear(10, 1000))
    with pytest.warns(UserWarning, match="keep no weight"):
        networks.biprop.apply(edge_popup, 0.1, selection="global", binarize="none")
    assert bool((edge_popup[0].effective_weight() == 0).all())


def test_layers_of_the_cifar_resnet18_that_start_empty():
    """|S| ~ U(0, 1/sqrt(fan)): sum_l n_l max(0, 1 - t sqrt(fan_l)) = k N gives the threshold t."""
    torch.manual_seed(0)
    net = timm.create_model("cifar_resnet18")
    with pytest.warns(UserWarning, match=r"^layer4.0.conv2, layer4.1.conv1, layer4.1.conv2 keep no weight"):
        networks.biprop.apply(net, 0.1, selection="global")
    layers = subnet_layers(net)
    sizes = {name: (layer.weight.numel(), math.sqrt(layer.weight[0].numel())) for name, layer in layers.items()}
    total = sum(n for n, _ in sizes.values())
    critical = sum(n * max(0, 1 - root / math.sqrt(4608)) for n, root in sizes.values()) / total
    assert critical == pytest.approx(0.1357, abs=1e-4)
    selection = layers["fc"].selection
    for k, empty in ((0.1, 3), (0.134, 3), (0.137, 0), (0.2, 0)):
        set_keep_fraction(net, k)
        selection.update()
        kept = {name: int(selection.mask(layer.scores).sum()) for name, layer in layers.items()}
        low, high = 0.0, 1.0
        for _ in range(50):
            t = (low + high) / 2
            more = sum(n * max(0, 1 - t * root) for n, root in sizes.values()) > k * total
            low, high = (t, high) if more else (low, t)
        assert sum(kept.values()) == pytest.approx(k * total, abs=20)  # ties at the threshold
        assert [name for name, count in kept.items() if not count] == (
            ["layer4.0.conv2", "layer4.1.conv1", "layer4.1.conv2"] if empty else []
        )
        for name, (n, root) in sizes.items():
            expected = n * max(0, 1 - low * root)
            assert abs(kept[name] - expected) < 6 * math.sqrt(n) + 1e-3 * n, name


def test_schedule_of_the_keep_fraction():
    pruned = [0.5, 0.6084, 0.6952, 0.7628, 0.8136, 0.85, 0.8744, 0.8892, 0.8968, 0.8996, 0.9]
    assert [1 - scheduled_keep_fraction(0.1, epoch) for epoch in range(11)] == pytest.approx(pruned, abs=5e-5)
    assert [scheduled_keep_fraction(0.1, epoch) for epoch in (10, 11, 250)] == [0.1] * 3
    assert [scheduled_keep_fraction(0.5, epoch) for epoch in range(12)] == [0.5] * 12
    assert [scheduled_keep_fraction(k, 0) for k in (0.51, 0.8, 1.0)] == [0.51, 0.8, 1.0]
    assert [scheduled_keep_fraction(0.2, epoch, epochs=2) for epoch in range(3)] == pytest.approx([0.5, 0.2375, 0.2])
    assert scheduled_keep_fraction(0.2, 0, epochs=0) == 0.2
