"""Which weights are kept, against a literal stable sort."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from networks.biprop.selection import keep_mask, kept_count, mask_by_partition, mask_by_sort


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
