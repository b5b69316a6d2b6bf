"""Who takes which samples, in which order, from where on."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_lightning import Trainer

from datamodules import Digits
from datamodules.base import check_batch_size
from datamodules.batches import Batches, Order
from datamodules.images import Images
from datamodules.randomness import permutation
from lightning_modules import Classifier
from networks import InputError

PARTS = st.integers(1, 5)


@given(st.integers(1, 200), PARTS, PARTS, PARTS, st.integers(0, 5), st.integers(0, 5))
def test_processes_and_steps_see_together_what_one_process_sees(size, share, world_size, steps, seed, epoch):
    batch_size = share * world_size * steps
    parts = [Order(size, batch_size, True, seed, rank, world_size, steps) for rank in range(world_size)]
    for part in parts:
        part.set_epoch(epoch)
    order = permutation(size, seed, epoch)
    draws = [list(part) for part in parts]
    assert [len(mine) for mine in draws] == [size // batch_size * steps] * world_size
    for start in range(0, size - batch_size + 1, batch_size):
        micro = range(start // batch_size * steps, (start // batch_size + 1) * steps)
        seen = [mine[i].indices for i in micro for mine in draws]
        assert {len(indices) for indices in seen} == {share}
        assert np.array_equal(np.concatenate(seen), order[start : start + batch_size])


@given(st.integers(0, 200), PARTS, PARTS)
def test_evaluation_takes_each_sample_once_and_as_many_batches_in_every_process(size, share, world_size):
    parts = [list(Order(size, share * world_size, False, 0, rank, world_size)) for rank in range(world_size)]
    assert len({len(part) for part in parts}) == 1
    assert sorted(i for part in parts for draw in part for i in draw.indices.tolist()) == list(range(size))
    sizes = [[len(draw.indices) for draw in batch] for batch in zip(*parts, strict=True)]
    assert all(max(batch) - min(batch) <= 1 for batch in sizes)


def augmented(num_workers=0, batch_size=8, **arguments):
    images = np.random.default_rng(0).integers(0, 256, (50, 3, 6, 5), dtype=np.uint8)
    dataset = Images(images, np.arange(50), (100.0,) * 3, (50.0,) * 3, crop_padding=2, flip=True)
    return Batches(dataset, Order(50, batch_size, True, seed=7, **arguments), num_workers)


def flat(batches):
    return [tensor for batch in batches for tensor in batch]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_workers_change_nothing():
    one, two = augmented(), augmented(num_workers=2)
    for _ in range(2):
        first, second = flat(one), flat(two)
        assert same(first, second)
        assert len(first) == 2 * 6  # the incomplete batch is left out
    two.sampler.set_epoch(0)
    one.sampler.set_epoch(0)
    assert same(flat(one), flat(two))  # workers that persist take the epoch that was set


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("position", [0, 1, 5, 6])
def test_resumes_in_the_middle_of_an_epoch(num_workers, position):
    whole, stopped, resumed = (augmented(num_workers) for _ in range(3))
    epochs = [flat(whole) for _ in range(3)]
    flat(stopped)
    iterator = iter(stopped)
    for _ in range(position):
        next(iterator)
    state = stopped.state_dict()
    assert state["epoch"] == 1
    assert state["position"] == position
    resumed.load_state_dict(state)
    rest = iter(resumed)  # Lightning makes the iterator before it sets the epoch
    resumed.sampler.set_epoch(1)
    assert same(flat(rest), epochs[1][2 * position :])
    assert same(flat(resumed), epochs[2])


def test_every_epoch_of_a_bare_loop_is_another():
    loader = augmented()
    first, second = flat(loader), flat(loader)
    assert not same(first, second)
    for labels in (first[1::2], second[1::2]):
        assert len(set(torch.cat(labels).tolist())) == 48


def test_the_middle_of_an_epoch_needs_the_same_batches():
    loader = augmented()
    next(iter(loader))
    state = loader.state_dict()
    other = augmented(batch_size=5)
    with pytest.raises(InputError, match=r"middle of an epoch with batch_size 8, batches 6 \(here 5, 10\): resume it"):
        other.load_state_dict(state)
    flat(loader)
    other.load_state_dict(loader.state_dict())  # at its end anything goes


def test_overfitting_repeats_the_first_epoch():
    loader = augmented(repeat=True)
    first = flat(augmented())
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        assert same(flat(loader), first)


def test_lightning_overfits_on_the_same_batches(tmp_path):
    seen = []

    class Recorded(Classifier):
        def training_step(self, batch, batch_idx):
            seen.append(batch[0])
            return super().training_step(batch, batch_idx)

    trainer = Trainer(
        default_root_dir=tmp_path, overfit_batches=2, max_epochs=3, logger=False, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Recorded("conv2", 10, (1, 8, 8), {"width": 0.1}), datamodule=Digits())
    assert len(seen) == 6
    assert same(seen[:2], seen[2:4])
    assert same(seen[:2], seen[4:])


def test_global_generators_are_left_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    flat(augmented(num_workers=2))
    flat(augmented())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002


def test_batch_size_is_the_total():
    trainer = Trainer(logger=False, accumulate_grad_batches=4, enable_progress_bar=False)
    check_batch_size(64, trainer, training=True)
    check_batch_size(30, trainer, training=False)
    with pytest.raises(InputError, match=r"data\.batch_size=30 .* 1 devices x 4 accumulated steps; .* multiple of 4"):
        check_batch_size(30, trainer, training=True)
    with pytest.raises(InputError, match=r"data\.num_workers=-1 must not be negative"):
        Digits(num_workers=-1)
    digits = Digits(batch_size=2000)
    digits.setup()
    with pytest.raises(InputError, match=r"data\.batch_size=2000 is more than the 1257 samples to train"):
        digits.train_dataloader()
