"""ESC-50: folds, crops and the cache, on synthetic clips; and the real ESC-10 where FRUGAL_DATA has it."""

import csv
import http.client
import multiprocessing
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from datamodules import ESC50
from datamodules.esc50 import CLASS_NAMES, ESC10
from networks import InputError

FIELDS = ["filename", "fold", "target", "category", "esc10", "src_file", "take"]


def write_clip(path, rate=44_100, seconds=5.0, channels=1, hz=440.0):
    t = np.arange(round(rate * seconds)) / rate
    wave = 0.5 * np.sin(2 * np.pi * hz * t)
    soundfile.write(path, np.repeat(wave[:, None], channels, 1), rate, subtype="PCM_16")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Five classes of ESC-10, one clip of each in each fold; the pitch says class and fold."""
    root = tmp_path_factory.mktemp("sound")
    folder = root / "ESC-50-master"
    (folder / "audio").mkdir(parents=True)
    (folder / "meta").mkdir()
    with open(folder / "meta/esc50.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(FIELDS)
        for fold in range(1, 6):
            name = f"{fold}-99-A-7.wav"  # insects, which ESC-10 has not
            write_clip(folder / "audio" / name, hz=50)
            writer.writerow([name, fold, 7, CLASS_NAMES[7], False, 99, "A"])
            for target in ESC10[:5]:
                name = f"{fold}-{target}-A-{target}.wav"
                write_clip(folder / "audio" / name, hz=100 * fold + 10 * ESC10.index(target))
                writer.writerow([name, fold, target, CLASS_NAMES[target], True, target, "A"])
    return root


@pytest.fixture
def root(original, tmp_path):
    """A copy of it that a test may damage; clips are links until then."""
    folder = tmp_path / "data/ESC-50-master"
    (folder / "audio").mkdir(parents=True)
    (folder / "meta").mkdir()
    for clip in (original / "ESC-50-master/audio").iterdir():
        (folder / "audio" / clip.name).symlink_to(clip)
    (folder / "meta/esc50.csv").write_text((original / "ESC-50-master/meta/esc50.csv").read_text())
    return tmp_path / "data"


def make(root, **arguments):
    options = dict(esc10=True, check_integrity=False, batch_size=5, sample_rate_hz=2000, gain_db=0.0)
    data = ESC50(str(root), **{**options, **arguments})
    data.prepare_data()
    data.setup()
    return data


def pitch(wave, rate=2000):
    """Frequency of a sine, Hz."""
    spectrum = np.abs(np.fft.rfft(wave.numpy().ravel()))
    return spectrum.argmax() * rate / wave.numel()


def test_what_is_known_before_any_data():
    data = ESC50("/nowhere", crop_seconds=2.0)
    assert (data.num_classes, data.input_size, data.folds) == (50, (1, 44_100), 5)
    assert (data.class_names[0], data.class_names[49], len(set(data.class_names))) == ("dog", "hand_saw", 50)
    ten = ESC50("/nowhere", esc10=True)
    assert (ten.num_classes, ten.input_size) == (10, (1, 110_250))
    assert ten.class_names == (
        "dog", "rooster", "rain", "sea_waves", "crackling_fire",
        "crying_baby", "sneezing", "clock_tick", "helicopter", "chainsaw",
    )  # fmt: skip
    assert not data.validates
    assert ESC50("/nowhere", val_fold=2).validates


@pytest.mark.parametrize("test_fold", [1, 4])
def test_the_test_fold_is_never_trained_on(root, test_fold):
    data = make(root, test_fold=test_fold)
    (test,) = data.test_dataloader()
    folds = [round(pitch(wave) // 100) for wave in test[0]]
    assert folds == [test_fold] * 5
    batches = list(data.train_dataloader())
    train = [
        (round(pitch(wave)), int(label)) for waves, labels in batches for wave, label in zip(waves, labels, strict=True)
    ]
    assert sorted(train) == [
        (100 * fold + 10 * label, label) for fold in range(1, 6) if fold != test_fold for label in range(5)
    ]
    assert data.val_dataloader() == []


def test_a_fold_can_validate_instead_of_training(root):
    data = make(root, test_fold=2, val_fold=5)
    sets = {name: set(getattr(data, f"{name}_set").rows) for name in ("train", "val", "test")}
    assert [getattr(data, f"{name}_set").training for name in sets] == [True, False, False]
    assert [len(rows) for rows in sets.values()] == [15, 5, 5]
    assert len(set.union(*sets.values())) == 25
    ((waves, _),) = data.val_dataloader()
    assert {round(pitch(wave) // 100) for wave in waves} == {5}


def test_scale_and_resampling(root):
    """A sine of half the full scale keeps its pitch, and comes out at half of SoundNet's +-256."""
    data = make(root, shift=False)
    waves, labels = next(iter(data.test_dataloader()))
    assert waves.dtype == torch.float32
    assert waves.shape == (5, 1, 10_000)
    for wave, label in zip(waves, labels, strict=True):
        assert pitch(wave) == pytest.approx(100 + 10 * int(label), abs=0.2)
        assert wave[0, 2000:8000].abs().max().item() == pytest.approx(128, rel=0.01)


def test_arguments_reach_the_sets(root):
    data = make(root, crop_seconds=2.0, gain_db=3.0, shift=False, test_crops=7)
    assert (data.train_set.gain_db, data.train_set.shift, data.train_set.crop) == (3.0, False, 4000)
    waves, _ = next(iter(data.test_dataloader()))
    assert waves.shape == (5, 7, 1, 4000)
    assert make(root).train_set.shift


# The cache


def test_clips_are_resampled_once_and_again_when_they_change(root, monkeypatch):
    make(root)
    (cache,) = (root / "ESC-50-master/resampled").iterdir()
    before = cache.stat().st_mtime_ns
    assert oct(cache.stat().st_mode)[-3:] == "644"
    calls = []
    monkeypatch.setattr(ESC50, "_resample", lambda self, paths: calls.append(paths))
    make(root)
    assert not calls
    assert cache.stat().st_mtime_ns == before
    monkeypatch.undo()
    clip = root / "ESC-50-master/audio/1-0-A-0.wav"
    clip.unlink()
    write_clip(clip, hz=333)
    data = make(root, test_fold=1)
    assert pitch(next(iter(data.test_dataloader()))[0][0]) == pytest.approx(333, abs=0.2)
    make(root, sample_rate_hz=1000)
    assert len(list((root / "ESC-50-master/resampled").iterdir())) == 3


def test_silence_stays_silence(root):
    """soxr's own rounding to 16 bits would add noise."""
    clip = root / "ESC-50-master/audio/1-0-A-0.wav"
    clip.unlink()
    soundfile.write(clip, np.zeros(220_500, np.int16), 44_100)
    assert not make(root).test_set.clips[0].any()


def test_a_cache_that_cannot_be_finished_leaves_nothing(root, monkeypatch):
    def full(file, clips):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("datamodules.esc50.np.save", full)
    with pytest.warns(UserWarning, match="no space left"):
        assert len(make(root).test_set) == 5
    assert list((root / "ESC-50-master/resampled").iterdir()) == []


def test_without_a_place_for_the_cache_clips_stay_in_memory(root):
    (root / "ESC-50-master/resampled").write_text("no folder")
    with pytest.warns(UserWarning, match="stay in memory"):
        data = make(root)
    assert len(next(iter(data.test_dataloader()))[0]) == 5
    assert data.test_set.clips is data.train_set.clips


def start(root, barrier):
    data = ESC50(str(root), esc10=True, check_integrity=False, batch_size=5, sample_rate_hz=2000)
    barrier.wait()
    data.prepare_data()
    data.setup()
    assert data.test_set.clips.shape == (25, 10_000)


def test_two_processes_may_start_together(root):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    both = [context.Process(target=start, args=(root, barrier)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    (cache,) = (root / "ESC-50-master/resampled").iterdir()  # and nothing partial beside it
    assert cache.suffix == ".npy"


def test_a_cut_cache_is_named(root):
    make(root)
    (cache,) = (root / "ESC-50-master/resampled").iterdir()
    np.save(cache, np.zeros((3, 10), np.int16))
    with pytest.raises(InputError, match=rf"{cache} does not hold the clips: remove it"):
        make(root)
    cache.write_bytes(cache.read_bytes()[:100])
    with pytest.raises(InputError, match=rf"{cache} does not hold the clips: remove it"):
        make(root)


# Bad input


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"seconds": 4.0}, "176400 samples of 44100 Hz in 1 channels"),
        ({"rate": 22_050}, "110250 samples of 22050 Hz in 1 channels"),
        ({"channels": 2}, "220500 samples of 44100 Hz in 2 channels"),
    ],
)
def test_a_clip_of_another_form_is_named(root, options, found):
    clip = root / "ESC-50-master/audio/3-10-A-10.wav"
    clip.unlink()
    write_clip(clip, **options)
    with pytest.raises(InputError, match=f"3-10-A-10.wav has {found}, not ESC-50's 220500 of 44100 Hz in one"):
        make(root)


def test_a_clip_that_is_no_sound_is_named(root):
    clip = root / "ESC-50-master/audio/3-10-A-10.wav"
    clip.unlink()
    clip.write_bytes(b"RIFF")
    with pytest.raises(InputError, match=r"3-10-A-10\.wav cannot be read"):
        make(root)


def test_a_missing_clip_is_named(root):
    (root / "ESC-50-master/audio/3-10-A-10.wav").unlink()
    with pytest.raises(InputError, match=r"1 clips are listed, but not there, such as .*3-10-A-10\.wav"):
        make(root)


def test_an_incomplete_list_is_refused(root):
    with pytest.raises(InputError, match=r"lists 1 clips of dog in fold 1, not 8: .*--data\.check_integrity false"):
        make(root, check_integrity=True)
    with pytest.raises(InputError, match=r"lists 1 clips of dog in fold 1, not 8: .*--data\.esc10 true"):
        make(root, check_integrity=True, esc10=False)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (None, "not there or not ESC-50's list"),
        ("a,b\n1,2\n", "not ESC-50's list"),
        ("filename,fold,target\nx.wav,one,3\n", "not ESC-50's list"),
        ("filename,fold,target\nx.wav,6,3\n", "x.wav has fold 6 and target 3"),
        ("filename,fold,target\nx.wav,1,50\n", "x.wav has fold 1 and target 50"),
        ("filename,fold,target\n", "lists no clip"),
    ],
)
def test_a_list_that_is_not_esc50s_is_refused(root, text, what):
    path = root / "ESC-50-master/meta/esc50.csv"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(InputError, match=what):
        make(root)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"test_fold": 0}, "test_fold=0: the folds are 1 to 5"),
        ({"val_fold": 6}, "val_fold=6"),
        ({"val_fold": 1}, "is the test fold, which must choose nothing"),
        ({"crop_seconds": 0.5}, "crop_seconds=0.5"),
        ({"crop_seconds": 6}, "crop_seconds=6"),
        ({"sample_rate_hz": 48_000}, "sample_rate_hz=48000"),
        ({"gain_db": -1}, "gain_db=-1"),
        ({"test_crops": 0}, "test_crops=0"),
    ],
)
def test_arguments_that_cannot_be_are_refused(options, what):
    with pytest.raises(InputError, match=what):
        ESC50("/nowhere", **options)


def test_it_is_downloaded_whole_or_not_at_all(tmp_path, root, monkeypatch):
    from torchvision.datasets import utils

    def download(url, target, filename):
        assert url.startswith("https://github.com/karolpiczak/ESC-50/archive/")
        (Path(target) / "ESC-50-master").mkdir(parents=True)
        if fails:
            raise fails
        (Path(target) / "ESC-50-master").rmdir()
        os.symlink(root / "ESC-50-master", Path(target) / "ESC-50-master")

    monkeypatch.setattr(utils, "download_and_extract_archive", download)
    errors = OSError("no route"), zipfile.BadZipFile("no route"), http.client.HTTPException("no route")
    for fails in errors:  # noqa: B007
        with pytest.raises(InputError, match=r"cannot be downloaded \(no route\): fetch https://.*--data\.root"):
            make(tmp_path / "new")
        assert list((tmp_path / "new").iterdir()) == []
    fails = None
    assert len(make(tmp_path / "new").test_set) == 5


@pytest.mark.skipif(
    not (Path(os.environ.get("FRUGAL_DATA", "nowhere")) / "ESC-50-master").is_dir(), reason="FRUGAL_DATA has no ESC-50"
)
def test_the_real_esc10():
    data = ESC50(esc10=True, test_fold=3)
    data.prepare_data()
    data.setup()
    assert (len(data.train_set), len(data.test_set)) == (320, 80)
    assert np.bincount(data.test_set.labels).tolist() == [8] * 10
    waves, labels = next(iter(data.train_dataloader()))
    assert waves.shape == (64, 1, 110_250)
    assert waves.abs().max() <= 256 * 2  # 6 dB
    assert labels.max() <= 9
