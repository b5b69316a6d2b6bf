"""Where stored weights are read: which epochs are kept, what is drawn, and that a resumed run goes on."""

import time
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure

from callbacks import SamplingMap
from callbacks.sampling_map import SNAPSHOTS, draw


class Moving:
    """Offsets grow by one in each look; another layer is fixed."""

    def __init__(self):
        self.looks = -1

    def sampling(self):
        self.looks += 1
        return {"moves": (torch.full((5,), float(self.looks)), torch.arange(4.0)), "stays": (None, torch.ones(3))}


def trainer(folder, epoch, images=None, resumed=None):
    seen = [] if images is None else images
    logger = SimpleNamespace(log_image=lambda name, paths: seen.append((name, paths)))
    return SimpleNamespace(
        current_epoch=epoch, ckpt_path=resumed, is_global_zero=True, fast_dev_run=False, log_dir=str(folder),
        default_root_dir=str(folder), loggers=[logger],
    )  # fmt: skip


def run(watch, module, folder, epochs, first=0, images=None):
    watch.on_train_start(trainer(folder, first, resumed="a file" if first else None), module)
    for epoch in range(first, epochs):
        watch.on_train_epoch_end(trainer(folder, epoch), module)
    watch.on_fit_end(trainer(folder, epochs, images), module)


@pytest.mark.parametrize(
    ("epochs", "kept"),
    [
        (3, [0, 1, 2, 3]),
        (7, [0, 1, 2, 3, 4, 5, 6, 7]),
        (8, [0, 2, 4, 6, 8]),
        (20, [0, 4, 8, 12, 16, 20]),
        (21, [0, 4, 8, 12, 16, 20, 21]),
        (15, [0, 4, 8, 12, 15]),
        (31, [0, 8, 16, 24, 31]),
        (4000, [0, 1024, 2048, 3072, 4000]),
    ],
)
def test_a_few_epochs_are_kept_evenly_and_the_last(tmp_path, epochs, kept):
    watch = SamplingMap()
    run(watch, Moving(), tmp_path, epochs)
    assert sorted(watch.snapshots) == kept
    assert len(watch.snapshots) <= SNAPSHOTS
    assert set(watch.snapshots[0]) == {"moves"}


def test_a_resumed_run_goes_on_from_its_first_epoch(tmp_path):
    whole, parts, again = SamplingMap(), SamplingMap(), SamplingMap()
    run(whole, Moving(), tmp_path, 12)
    module = Moving()
    parts.on_train_start(trainer(tmp_path, 0), module)
    for epoch in range(5):
        parts.on_train_epoch_end(trainer(tmp_path, epoch), module)
    again.load_state_dict(parts.state_dict())
    run(again, module, tmp_path, 12, first=5)
    assert sorted(again.snapshots) == sorted(whole.snapshots)
    assert again.snapshots[0]["moves"].eq(0).all()


def test_the_picture_goes_to_the_logger(tmp_path):
    images = []
    run(SamplingMap(), Moving(), tmp_path, 2, images=images)
    assert images == [("pictures/epitomes", [str(tmp_path / "epitomes.png")])]
    assert (tmp_path / "epitomes.png").read_bytes().startswith(b"\x89PNG")


def test_every_process_asks_for_the_folder_in_every_epoch(tmp_path, monkeypatch):
    """Lightning broadcasts it, and their clocks differ: whether it is time to draw may not decide."""
    asked = []
    monkeypatch.setattr("callbacks.sampling_map.log_folder", lambda trainer: asked.append(trainer) or tmp_path)
    watch, module = SamplingMap(), Moving()
    watch.on_train_start(trainer(tmp_path, 0), module)
    for epoch, late in enumerate((False, True, False)):
        watch._drawn = time.monotonic() - 60 * late
        watch.on_train_epoch_end(trainer(tmp_path, epoch), module)
        assert len(asked) == epoch + 1
        assert (tmp_path / "epitomes.png").exists() == (epoch > 0)


def test_without_a_logger_nothing_is_drawn(tmp_path):
    watch = SamplingMap()
    silent = trainer(tmp_path, 0)
    silent.loggers = []
    watch.on_train_start(silent, Moving())
    watch.on_train_epoch_end(silent, Moving())
    watch.on_fit_end(silent, Moving())
    assert list(tmp_path.iterdir()) == []


def test_what_is_drawn(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: figures.append(self))
    snapshots = {0: {"moves": torch.zeros(5)}, 4: {"moves": torch.tensor([0.5, -1, 0, 2, 3])}}
    draw(snapshots, {"moves": torch.tensor([1.0, 3, 2]), "stays": torch.ones(3)}, "never.png")
    (offsets, reads), (fixed, _) = (figures[0].axes[i : i + 2] for i in (0, 2))
    assert [line.get_ydata().tolist() for line in offsets.lines] == [[0] * 5, [0.5, -1, 0, 2, 3]]
    assert [line.get_label() for line in offsets.lines] == ["0", "4"]
    assert reads.lines[0].get_ydata().tolist() == [1, 3, 2]
    assert [axes.get_ylabel() for axes in (offsets, fixed)] == ["moves", "stays"]
    assert [text.get_text() for text in fixed.texts] == ["fixed"]
