"""The search space: closed-form costs against built networks, and what the sampler gives."""

import math
from itertools import pairwise

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from networks import InputError
from networks.complexity import count
from networks.rexnet import space
from networks.rexnet.space import BUDGETS, PUBLISHED, Around, Budget

LISTS = {(budget, kind): PUBLISHED[budget][kind][0] for budget in PUBLISHED for kind in ("best", "worst")}
COSTS = {  # body parameters, with 10 classes, multiply-adds with 100 classes, FLOPs(bn2) (spec 5.3)
    ("a", "best"): (187_994, 198_244, 28_389_504, 29_992_320),
    ("a", "worst"): (179_150, 189_400, 29_195_264, 30_797_184),
    ("b", "best"): (489_638, 499_888, 96_118_912, 100_358_784),
    ("c", "best"): (1_003_544, 1_013_794, 186_303_488, 191_975_040),
    ("d", "best"): (3_010_040, 3_020_290, 343_892_992, 351_679_488),
}


def build(channels, **arguments):
    with torch.device("meta"):
        return timm.create_model("channel_search_net", channels=channels, **arguments)


def slopes(channels):
    """Bounds of a (exclusive) for which c_i = max(c_1, round(a f(i) + b)), f counting the places of growth."""
    growth = [c for i, c in enumerate(channels) if i and c > channels[i - 1]]
    low, high = 0.0, float("inf")
    for i, c in enumerate(growth):
        low = max(low, (c - channels[0] - 1) / (i + 1))
        for j in range(i):
            low = max(low, (c - growth[j] - 1) / (i - j))
            high = min(high, (c - growth[j] + 1) / (i - j))
    return low, high


def representable(channels):
    low, high = slopes(channels)
    return all(b >= a for a, b in pairwise(channels)) and low < high


@pytest.mark.parametrize("which", COSTS)
def test_costs_of_published_lists(which):
    channels = np.array([LISTS[which]])
    costs = space.params(channels, None), space.params(channels), space.macs(channels), space.flops(channels)
    assert tuple(int(cost[0]) for cost in costs) == COSTS[which]


@settings(max_examples=25)
@given(st.lists(st.integers(1, 200), min_size=2, max_size=13).map(sorted))
def test_closed_forms_are_what_is_built(channels):
    report = count(build(channels), (3, 32, 32))
    assert report.params == space.params(np.array([channels]), 100)[0]
    assert report.flops == space.macs(np.array([channels]))[0]


@pytest.mark.parametrize(
    "options",
    [
        {"stem": 24, "first": 8, "expansion": 4, "penultimate": 640},
        {"stem": 90, "first": 0, "strided": (1, 3), "penultimate": 960},
    ],
)
def test_closed_forms_with_other_surroundings(options):
    net = build([20, 30, 40], num_classes=10, in_chans=1, **options)
    report, lists = count(net, (1, 16, 16)), np.array([[20, 30, 40]])
    around = Around(**options, in_chans=1, side=16)
    assert report.params == space.params(lists, 10, around)[0]
    assert report.flops == space.macs(lists, 10, around)[0]
    assert normalised(net, (1, 1, 16, 16)) == (space.flops(lists, 10, around) - report.flops)[0] / 2


def normalised(net, size=(1, 3, 32, 32)):
    """Elements that the batch normalisations of a built network give."""
    elements = []
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(lambda _, args, out: elements.append(out[0].numel()))
    net(torch.empty(size, device="meta"))
    return sum(elements)


@pytest.mark.parametrize("blocks", [5, 9, 13])
def test_normalised_elements_count_twice(blocks):
    channels = list(range(20, 20 + 3 * blocks, 3))
    both = np.array([channels])
    assert space.flops(both)[0] - space.macs(both)[0] == 2 * normalised(build(channels))


@pytest.mark.parametrize(("blocks", "strided"), [(5, (2, 3)), (9, (4, 7)), (13, (5, 9))])
def test_stride_rule_and_last_map(blocks, strided):
    assert space.stride_blocks(blocks) == strided
    net = build([16] * blocks)
    assert net.forward_features(torch.empty(1, 3, 32, 32, device="meta")).shape == (1, 1024, 8, 8)


@pytest.mark.parametrize("which", LISTS)
def test_published_lists_are_in_the_space_and_in_their_budgets(which):
    assert representable(LISTS[which])
    assert BUDGETS[which[0]].accepts(np.array([LISTS[which]]))[0]


def test_targets_of_the_budgets():
    """Table 1's (a) to (d), (d) as its groups are, and those of the discussion (spec 5.4)."""
    targets = {name: (budget.blocks, budget.flops / 1e6, budget.params) for name, budget in BUDGETS.items()}
    assert targets == {
        "a": (5, 30, 0.2e6),
        "b": (9, 100, 0.5e6),
        "c": (9, 200, 1e6),
        "d": (13, 350, 3e6),
        **{f"5_blocks_{flops}m": (5, flops, None) for flops in (30, 50, 70)},
        **{f"9_blocks_{flops}m": (9, flops, None) for flops in (100, 150, 200)},
    }


def test_first_channels_are_drawn_from_16_to_64():
    drawn = space.draw(Budget(2, 1e12), 5000, np.random.default_rng(0))[:, 0]
    assert (drawn.min(), drawn.max()) == (16, 64)


def test_published_slopes():
    """Spec 5.2's table, of the straight lines."""
    assert slopes(LISTS["b", "best"])[0] < 8.75 < slopes(LISTS["b", "best"])[1]
    assert slopes(LISTS["c", "best"])[0] < 14.5 < slopes(LISTS["c", "best"])[1]
    assert slopes(LISTS["d", "best"])[0] < 24 < slopes(LISTS["d", "best"])[1]
    assert not representable((10, 12, 40, 42))


@pytest.mark.parametrize(("budget", "widths", "flops", "off"), [
    ("18-depth", (34, 57, 87, 100, 115), 50e6, 1e6),
    ("18-depth", (44, 69, 98, 126, 150), 70e6, 1.5e6),
    ("30-depth", (34, 42, 50, 60, 72, 85, 96, 105, 118), 149e6, 2e6),
])  # fmt: skip
def test_curves_of_the_figures(budget, widths, flops, off):
    assert abs(space.flops(np.array([widths]))[0] - flops) <= off


@pytest.mark.parametrize("name", BUDGETS)
def test_sampled_lists(name):
    budget = BUDGETS[name]
    lists = space.sample(budget, 200)
    assert lists.shape == (200, budget.blocks)
    assert len(np.unique(lists, axis=0)) == 200
    assert budget.accepts(lists).all()
    assert all(representable(channels) for channels in lists.tolist())
    assert lists[:, 0].min() >= 16
    assert lists[:, 0].max() <= 64
    assert np.array_equal(space.sample(budget, 50), lists[:50])
    assert not np.array_equal(space.sample(budget, 50, seed=1), lists[:50])


@pytest.mark.parametrize(
    ("name", "mean", "deviation"), [("a", 30.0, 0.9), ("b", 100.3, 7.0), ("c", 200.3, 16.6), ("d", 350.4, 6.1)]
)
def test_spreads_are_those_that_the_paper_prints(name, mean, deviation):
    flops = space.flops(space.sample(BUDGETS[name], 600)) / 1e6
    assert abs(flops.mean() - mean) < 0.05 * deviation * 10
    assert abs(flops.std() / deviation - 1) < 0.15


def test_subsets_of_every_size_are_as_likely():
    drawn = space.draw(BUDGETS["b"], 20_000, np.random.default_rng(0))
    growths = (np.diff(drawn) > 0).sum(1)
    shares = np.bincount(growths, minlength=9)[1:] / 20_000
    assert np.abs(shares - 1 / 8).max() < 0.03  # a first step may be rounded away


def test_a_budget_that_nobody_meets():
    with pytest.raises(InputError, match="only 0 of 10 lists of 5 blocks"):
        space.sample(Budget(5, 30e6, params=5e6), 10)
    for budget, named in ((Budget(5, 0), "flops=0"), (Budget(1, 1e6), "blocks=1"), (Budget(5, math.nan), "flops=nan")):
        with pytest.raises(InputError, match=rf"budget\.{named}"):
            space.sample(budget, 1)


def test_surroundings_without_a_closed_form():
    with pytest.raises(InputError, match="expansion=1: below 2"):
        Around(expansion=1)
    with pytest.raises(InputError, match="images of 30 pixels cannot be halved 2 times"):
        space.macs(np.array([[20, 30, 40]]), 10, Around(side=30))


@pytest.mark.parametrize("channels", [[], [30, 20], [0, 3]])
def test_lists_that_are_none(channels):
    with pytest.raises(InputError, match="must be positive and must not decrease"):
        build(channels)
    with pytest.raises(InputError, match="blocks outside 1 to 2"):
        build([20, 30], strided=[3])
