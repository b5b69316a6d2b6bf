"""ESC-50 and ESC-10."""

import csv
import hashlib
import os
import shutil
import tempfile
from collections import Counter
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from rich.console import Console
from rich.progress import track

from datamodules.base import DataModule, data_root
from datamodules.sounds import Sounds
from networks import InputError

SOURCE = "https://github.com/karolpiczak/ESC-50/archive/master.zip"
FOLDER = "ESC-50-master"  # as that archive unpacks
SOURCE_RATE_HZ, CLIP_SECONDS = 44_100, 5.0
FOLDS = 5
CLASS_NAMES = (
    "dog", "rooster", "pig", "cow", "frog", "cat", "hen", "insects", "sheep", "crow",
    "rain", "sea_waves", "crackling_fire", "crickets", "chirping_birds",
    "water_drops", "wind", "pouring_water", "toilet_flush", "thunderstorm",
    "crying_baby", "sneezing", "clapping", "breathing", "coughing",
    "footsteps", "laughing", "brushing_teeth", "snoring", "drinking_sipping",
    "door_wood_knock", "mouse_click", "keyboard_typing", "door_wood_creaks", "can_opening",
    "washing_machine", "vacuum_cleaner", "clock_alarm", "clock_tick", "glass_breaking",
    "helicopter", "chainsaw", "siren", "car_horn", "engine",
    "train", "church_bells", "airplane", "fireworks", "hand_saw",
)  # fmt: skip
ESC10 = (0, 1, 10, 11, 12, 20, 21, 38, 40, 41)  # targets of the subset
CLIPS_OF_CLASS = 8  # in each fold


class Clip(NamedTuple):
    """A row of the list of clips."""

    filename: str
    fold: int
    target: int


class ESC50(DataModule):
    """2000 recordings of 5 s in 50 classes of environmental sound, in five folds (Piczak, ACM MM 2015).

    They lie in <root>/ESC-50-master/, as published: audio/*.wav and meta/esc50.csv; the archive is downloaded where it
    is absent. Clips cut from one recording share a fold: the folds are the only split. Training takes all but the test
    fold, which chooses nothing, so by default nothing validates and the last epoch counts; `val_fold` takes another one
    away from training for that. `frugal cross-validate` runs all five.

    Clips are resampled once (soxr, its best quality), kept as 16-bit samples in <root>/ESC-50-master/resampled/, and
    mapped from there; in memory where that folder cannot be written.

    Args:
        root: folder that has, or gets, ESC-50-master; None means the environment variable FRUGAL_DATA, or else data/.
        esc10: the subset ESC-10, 400 clips in ten classes.
        test_fold: 1 to 5.
        val_fold: another fold that validates instead of training.
        batch_size: total over all devices and accumulated steps.
        sample_rate_hz: that the network gets; SoundNet's 22,050. (WSNet's and NES's are not known.)
        crop_seconds: 1 to 5 s of a clip; 5 is the whole.
        gain_db: training multiplies each crop by a gain uniform in +-gain_db decibels. Ours.
        shift: training on whole clips begins each anywhere in it and goes on at its start. Ours.
        test_crops: crops of a clip in evaluation, evenly spaced; probabilities are averaged. Whole clips need one.
        check_integrity: refuse a list of clips that has not 8 of each class in each fold.
        num_workers: processes that prepare batches, for each device.

    Batches: waveforms (N, 1, T) in +-256, SoundNet's scale, or in evaluation (N, test_crops, 1, T); labels (N,).

    Raises:
        InputError: arguments that cannot work; data that cannot be had; a list or clips that are not ESC-50's.
    """

    folds = FOLDS
    gives = "labels"

    def __init__(
        self,
        root: str | None = None,
        esc10: bool = False,
        test_fold: int = 1,
        val_fold: int | None = None,
        batch_size: int = 64,
        sample_rate_hz: int = 22_050,
        crop_seconds: float = CLIP_SECONDS,
        gain_db: float = 6.0,
        shift: bool = True,
        test_crops: int = 10,
        check_integrity: bool = True,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers)
        for name, fold in (("test_fold", test_fold), ("val_fold", val_fold)):
            if fold is not None and not 1 <= fold <= FOLDS:
                raise InputError(f"data.{name}={fold}: the folds are 1 to {FOLDS}")
        if val_fold == test_fold:
            raise InputError(f"data.val_fold={val_fold} is the test fold, which must choose nothing")
        if not 1 <= crop_seconds <= CLIP_SECONDS:
            raise InputError(f"data.crop_seconds={crop_seconds} must lie in 1 to {CLIP_SECONDS:g}, the clips' length")
        if not 1000 <= sample_rate_hz <= SOURCE_RATE_HZ:
            raise InputError(
                f"data.sample_rate_hz={sample_rate_hz} must lie in 1000 to {SOURCE_RATE_HZ}, the clips' own"
            )
        if gain_db < 0 or test_crops < 1:
            raise InputError(f"data.{gain_db=} must not be negative, data.{test_crops=} must be positive")
        self.folder = data_root(root) / FOLDER
        self.targets = ESC10 if esc10 else tuple(range(len(CLASS_NAMES)))
        self.num_classes, self.class_names = len(self.targets), tuple(CLASS_NAMES[target] for target in self.targets)
        self.esc10, self.test_fold, self.val_fold, self.sample_rate_hz = esc10, test_fold, val_fold, sample_rate_hz
        self.length = round(CLIP_SECONDS * sample_rate_hz)
        self.crop = round(crop_seconds * sample_rate_hz)
        self.input_size = (1, self.crop)
        self.gain_db, self.shift, self.test_crops = gain_db, shift, test_crops
        self.check_integrity, self.validates = check_integrity, val_fold is not None
        self._in_memory: np.ndarray | None = None  # clips, where no cache can be written

    def prepare_data(self) -> None:
        """Download what is absent, and resample what is not resampled yet."""
        if not self.folder.is_dir():
            _download(self.folder)
        self._clips(self._read_list())

    def setup(self, stage: str | None = None) -> None:
        listed = self._read_list()
        clips = self._clips(listed)
        labels = np.array([self.targets.index(clip.target) for clip in listed])
        folds = np.array([clip.fold for clip in listed])

        def sounds(rows: np.ndarray, training: bool = False) -> Sounds:
            (rows,) = np.nonzero(rows)
            return Sounds(clips, rows, labels[rows], self.crop, training, self.gain_db, self.shift, self.test_crops)

        self.train_set = sounds((folds != self.test_fold) & (folds != self.val_fold), training=True)
        self.test_set = sounds(folds == self.test_fold)
        if self.val_fold is not None:
            self.val_set = sounds(folds == self.val_fold)

    def val_dataloader(self) -> Any:
        """Batches of `val_fold`; without one there is nothing to validate, and Lightning skips it."""
        return super().val_dataloader() if self.validates else []

    def _read_list(self) -> list[Clip]:
        """The clips of this set, in the order of the list."""
        path = self.folder / "meta/esc50.csv"
        try:
            with open(path, newline="") as file:
                rows = [Clip(row["filename"], int(row["fold"]), int(row["target"])) for row in csv.DictReader(file)]
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path} is not there or not ESC-50's list ({error!r}): remove {self.folder} to download it again"
            ) from error
        for row in rows:
            if not 1 <= row.fold <= FOLDS or not 0 <= row.target < len(CLASS_NAMES):
                raise InputError(f"{path}: {row.filename} has fold {row.fold} and target {row.target}, not ESC-50's")
        rows = [row for row in rows if row.target in self.targets]
        counts = Counter((row.fold, row.target) for row in rows)
        wanted = {(fold, target): CLIPS_OF_CLASS for fold in range(1, FOLDS + 1) for target in self.targets}
        if self.check_integrity and counts != wanted:
            fold, target = min(key for key in {**wanted, **counts} if counts[key] != wanted.get(key, 0))
            raise InputError(
                f"{path} lists {counts[fold, target]} clips of {CLASS_NAMES[target]} in fold {fold}, not "
                f"{CLIPS_OF_CLASS}: complete it, take the ten classes of ESC-10 with --data.esc10 true, or what is "
                "there with --data.check_integrity false"
            )
        if not rows:
            raise InputError(f"{path} lists no clip of these classes")
        return rows

    def _clips(self, listed: list[Clip]) -> np.ndarray:
        """All clips at the sample rate, (M, T), int16, from the cache."""
        paths = [self.folder / "audio" / clip.filename for clip in listed]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise InputError(
                f"{len(missing)} clips are listed, but not there, such as {missing[0]}: remove {self.folder} to "
                "download it again"
            )
        if self._in_memory is not None:
            return self._in_memory
        sizes = [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in paths]
        known = hashlib.sha256("\n".join(["rounded", *sizes]).encode()).hexdigest()[:16]
        cache = self.folder / f"resampled/{self.sample_rate_hz}_{known}.npy"
        if not cache.is_file():
            clips = self._resample(paths)
            if not _save(cache, clips):
                self._in_memory = clips
                return clips
        try:
            clips = np.load(cache, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError):  # cut short
            clips = np.empty(0)
        if clips.shape != (len(paths), self.length) or clips.dtype != np.int16:
            raise InputError(f"{cache} does not hold the clips: remove it, and it is made again")
        return clips

    def _resample(self, paths: list[Path]) -> np.ndarray:
        import soxr

        clips = np.empty((len(paths), self.length), np.int16)
        silent = rank_zero_only.rank > 0  # type: ignore[attr-defined]
        console = Console(stderr=True)
        for i, path in enumerate(track(paths, "resampling clips", console=console, transient=True, disable=silent)):
            wave = soxr.resample(_read(path).astype(np.float32), SOURCE_RATE_HZ, self.sample_rate_hz, quality="VHQ")
            clips[i] = np.rint(wave[: self.length]).clip(-(2**15), 2**15 - 1)  # soxr's own rounding adds dither
        return clips


def _read(path: Path) -> np.ndarray:
    """Samples of a clip, (220500,), int16."""
    import soundfile

    try:
        wave, rate = soundfile.read(path, dtype="int16", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise InputError(f"{path} cannot be read ({error}): remove it and restore it from the archive") from error
    wanted = SOURCE_RATE_HZ, 1, round(CLIP_SECONDS * SOURCE_RATE_HZ)
    if (rate, wave.shape[1], len(wave)) != wanted:
        raise InputError(
            f"{path} has {len(wave)} samples of {rate} Hz in {wave.shape[1]} channels, not ESC-50's {wanted[2]} of "
            f"{wanted[0]} Hz in one: restore it from the archive"
        )
    return wave[:, 0]


def _save(cache: Path, clips: np.ndarray) -> bool:
    """Write the cache under another name and rename it, so that a second process finds all of it or nothing."""
    try:
        cache.parent.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache.parent, suffix=".partial", delete=False) as file:
            try:
                np.save(file, clips)
                os.chmod(file.name, 0o644)
                os.replace(file.name, cache)
            except OSError:
                os.unlink(file.name)
                raise
    except OSError as error:
        rank_zero_warn(f"resampled clips stay in memory, and are resampled in each run: {cache.parent} ({error})")
        return False
    rank_zero_info(f"resampled clips: {cache}")
    return True


def _download(folder: Path) -> None:
    """Fetch the archive and unpack it beside its place, so that the folder is there whole or not at all."""
    from torchvision.datasets.utils import download_and_extract_archive

    rank_zero_info(f"downloading ESC-50 (600 MB) into {folder.parent}")
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    try:
        download_and_extract_archive(SOURCE, str(partial), filename="master.zip")
        if not folder.is_dir():  # another process may have been faster
            (partial / FOLDER).rename(folder)
    except (OSError, RuntimeError, HTTPException, BadZipFile) as error:
        raise InputError(
            f"no ESC-50 in {folder}, and it cannot be downloaded ({error}): fetch {SOURCE}, unpack it there, or "
            "say with --data.root or FRUGAL_DATA where ESC-50-master is"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
