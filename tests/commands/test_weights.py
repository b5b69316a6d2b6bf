"""When weights are fetched: once, where training begins."""

import json
import math

import pytest
import torch

import frugal
from callbacks.curves import TrainingCurves

CONFIG = """\
model:
  class_path: lightning_modules.Classifier
  init_args: {network: resnet10t, network_args: {pretrained: true}}
trainer: {max_epochs: 1, limit_train_batches: 2, limit_val_batches: 1, enable_progress_bar: false}
"""


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    """A folder with a config, and the networks for which timm was asked for weights."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(CONFIG)
    asked = []
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda network, **options: asked.append(network))
    return asked


def test_a_run_fetches_once(fetched, capsys):
    frugal.main(["count", "-c", "small.yaml", "--json"])
    assert json.loads(capsys.readouterr().out)["output_size"] == [10]
    assert fetched == []
    frugal.main(["fit", "-c", "small.yaml"])
    assert len(fetched) == 1
    frugal.main(["fit", "-c", "small.yaml", "--ckpt_path", "last", "--trainer.max_epochs", "2"])
    frugal.main(["test", "-c", "small.yaml", "--trainer.max_epochs", "2"])
    frugal.main(["predict", "-c", "small.yaml", "--trainer.max_epochs", "2"])
    assert len(fetched) == 1


def test_another_width_is_another_network_still(fetched, capsys):
    frugal.main(["fit", "-c", "small.yaml"])
    with pytest.raises(SystemExit):
        frugal.main(["test", "-c", "small.yaml", "--model.network_args", "{pretrained: true, stem_width: 16}"])
    assert "was trained with network_args={'pretrained': True}" in capsys.readouterr().err


def test_the_curve_is_of_the_score_that_the_module_has(fetched, capsys):
    frugal.main(["fit", "-c", "small.yaml"])
    checkpoint = torch.load("runs/small/seed0/checkpoints/last.ckpt", weights_only=True)
    (row,) = checkpoint["callbacks"][TrainingCurves.__name__]["history"]
    assert row.keys() == {"epoch", "hours", "train/loss", "train/top1", "val/loss", "val/top1"}
    assert all(math.isfinite(value) for value in row.values())
