"""Training input of ESC-50: python benchmarks/sounds.py FOLDER [--esc10]

A batch of 64 whole clips of 22,050 Hz on one core: read and resampled each time, which is the plain way; read and
resampled by the same libraries once and kept as floats, cropped one by one; and ours, from the cache. FOLDER has
ESC-50-master.
"""

import argparse

import numpy as np
import soundfile
import soxr
import torch
from timing import compare, header

from datamodules import ESC50
from datamodules.randomness import Draw

BATCH, ROUNDS = 64, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="folder that has ESC-50-master")
    parser.add_argument("--esc10", action="store_true", help="the subset is all there is")
    options = parser.parse_args()
    torch.set_num_threads(1)
    header()
    data = ESC50(options.folder, options.esc10)
    data.prepare_data()
    data.setup()
    paths = sorted((data.folder / "audio").glob("*.wav"))[:BATCH]
    random = np.random.default_rng(0)

    def read(path):
        wave, _ = soundfile.read(path, dtype="float32")
        return soxr.resample(wave, 44_100, 22_050, quality="VHQ")

    kept = [read(path) for path in paths]

    def augmented(waves):
        batch = [np.roll(wave, random.integers(len(wave))) * 10 ** random.uniform(-0.3, 0.3) for wave in waves]
        return torch.from_numpy(256 * np.stack(batch)[:, None])

    alternatives = {
        "read and resampled each time": lambda: augmented([read(path) for path in paths]),
        "kept as floats, one by one": lambda: augmented(kept),
        "datamodules.ESC50": lambda: data.train_set[Draw(0, 0, np.arange(BATCH))],
    }
    compare(f"a batch of {BATCH} clips to train on", alternatives, rounds=ROUNDS)


if __name__ == "__main__":
    main()
