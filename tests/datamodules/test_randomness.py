"""Random numbers are functions of (seed, epoch, sample index), and look random."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.randomness import Draw, permutation


@given(st.integers(0, 2**32 - 1), st.integers(0, 1000), st.lists(st.integers(0, 10**7), min_size=1, max_size=20))
def test_a_sample_draws_the_same_in_any_batch(seed, epoch, indices):
    together = Draw(seed, epoch, np.array(indices)).uniform(4)
    for row, index in zip(together, indices, strict=True):
        assert np.array_equal(Draw(seed, epoch, np.array([index])).uniform(4)[0], row)
    assert together.min() >= 0
    assert together.max() < 1
    assert np.array_equal(together[:, :2], Draw(seed, epoch, np.array(indices)).uniform(2))


def test_numbers_are_uniform_and_unrelated_across_seeds_epochs_samples_and_columns():
    """20,000 numbers each: a share or a correlation off by five standard errors would fail."""
    indices = np.arange(20_000)
    series = [Draw(seed, epoch, indices).uniform(2) for seed, epoch in [(0, 0), (0, 1), (1, 0), (2**32 - 1, 0), (1, 1)]]
    columns = np.concatenate(series, axis=1).T
    error = 1 / np.sqrt(len(indices))
    for column in columns:
        shares = np.bincount((column * 9).astype(int), minlength=9) / len(indices)
        assert np.abs(shares - 1 / 9).max() < 5 * error * np.sqrt(1 / 9 * 8 / 9)
        assert abs(np.corrcoef(column[1:], column[:-1])[0, 1]) < 5 * error
    correlations = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(correlations).max() < 5 * error


def test_an_order_is_a_permutation_of_its_own_epoch_and_seed():
    orders = [permutation(1000, seed, epoch) for seed in range(3) for epoch in range(3)]
    assert all(np.array_equal(np.sort(order), np.arange(1000)) for order in orders)
    assert len({order.tobytes() for order in orders}) == 9
    assert np.array_equal(permutation(1000, 1, 2), orders[5])


def test_numbers_do_not_change_between_versions():
    """Results that we publish depend on them."""
    pinned = [0.1296456182997474, 0.049920065672091285, 0.8513026201288322, 0.18670452030252627]
    assert Draw(0, 0, np.array([0, 1])).uniform(2).ravel() == pytest.approx(pinned, abs=1e-15)
    assert permutation(10, 0, 0).tolist() == [2, 1, 7, 8, 6, 0, 3, 5, 9, 4]
