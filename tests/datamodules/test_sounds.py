"""Crops and gains of clips that tell where each sample was."""

import numpy as np
import pytest
import torch

from datamodules.randomness import Draw
from datamodules.sounds import Sounds

RAMP = np.arange(3 * 1000, dtype=np.int16).reshape(3, 1000)  # of each value one can tell clip and place


def sounds(**options):
    rows = options.pop("rows", np.arange(3))
    return Sounds(RAMP, rows, np.array([7, 8, 9])[: len(rows)], **options)


def test_random_crops_are_pieces_of_their_clip():
    data = sounds(crop=200, training=True, rows=np.array([2, 0, 1]))
    starts = set()
    for epoch in range(20):
        waves, labels = data[Draw(0, epoch, np.array([1, 0, 2]))]
        assert labels.tolist() == [8, 7, 9]
        for wave, row in zip(waves, (0, 2, 1), strict=True):
            values = (wave[0] * 128).round().int()
            assert values.diff().eq(1).all()
            assert 1000 * row <= values[0] <= 1000 * row + 800
            starts.add(int(values[0]) % 1000)
    assert len(starts) > 50


@pytest.mark.parametrize("shift", [True, False])
def test_whole_clips_are_shifted_in_a_circle(shift):
    data = sounds(crop=1000, training=True, shift=shift)
    waves, _ = data[Draw(3, 1, np.arange(3))]
    values = (waves[:, 0] * 128).round().int()
    assert values.sort(1).values.equal(torch.from_numpy(RAMP).int())
    assert (values[:, 0] != torch.tensor([0, 1000, 2000])).any() == shift
    assert ((values.diff(dim=1) != 1).sum(1) <= 1).all()


def test_gain_is_uniform_in_decibels():
    data = Sounds(np.full((1, 10), 12_800, np.int16), np.zeros(500, int), np.zeros(500), 10, True, gain_db=6.0)
    waves, _ = data[Draw(0, 0, np.arange(500))]
    decibels = 20 * (waves[:, 0, 0].double() / 100).log10()
    assert decibels.min() >= -6
    assert decibels.max() <= 6
    assert decibels.mean().item() == pytest.approx(0, abs=0.5)
    assert decibels.std().item() == pytest.approx(12 / 12**0.5, rel=0.1)
    assert waves[:, 0].std(1).max() == 0  # one gain for a crop


def test_crops_are_functions_of_seed_epoch_and_sample():
    data = sounds(crop=200, training=True, gain_db=3.0)
    together, _ = data[Draw(1, 2, np.arange(3))]
    for i in range(3):
        assert data[Draw(1, 2, np.array([i]))][0].equal(together[i : i + 1])
    assert not data[Draw(1, 3, np.arange(3))][0].equal(together)
    assert not data[Draw(2, 2, np.arange(3))][0].equal(together)


def test_crops_reach_both_ends():
    """Of 10 samples, crops of 8 begin at 0, 1 or 2."""
    data = Sounds(np.arange(10, dtype=np.int16)[None], np.zeros(300, int), np.zeros(300), 8, True)
    waves, _ = data[Draw(0, 0, np.arange(300))]
    starts = np.bincount((waves[:, 0, 0] * 128).round().int())
    assert len(starts) == 3
    assert starts.min() > 60


def test_loudness_does_not_go_with_the_place():
    clip = np.arange(1, 2001, dtype=np.int16)[None]
    data = Sounds(clip, np.zeros(2000, int), np.zeros(2000), 2, True, gain_db=6.0)
    waves, _ = data[Draw(0, 0, np.arange(2000))]
    step = (waves[:, 0, 1] - waves[:, 0, 0]) * 128  # the gain, for the clip rises by one
    place = waves[:, 0, 0] * 128 / step
    assert abs(np.corrcoef(step.log(), place)[0, 1]) < 0.1


def test_evaluation_crops_go_evenly_from_start_to_end():
    waves, _ = sounds(crop=200, crops=5)[Draw(0, 0, np.array([1]))]
    assert waves.shape == (1, 5, 1, 200)
    assert (waves[0, :, 0, 0] * 128).round().tolist() == [1000, 1200, 1400, 1600, 1800]
    one, _ = sounds(crop=200, crops=1)[Draw(0, 0, np.array([0]))]
    assert one.shape == (1, 1, 200)
    assert (one[0, 0, 0] * 128).round() == 400  # the middle
    whole, _ = sounds(crop=1000, crops=5)[Draw(0, 0, np.array([0]))]
    assert whole.shape == (1, 1, 1000)
