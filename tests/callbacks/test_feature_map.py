"""The map of features: what is taken of the network, and that nothing is left behind."""

import pytest
import timm
import torch
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.loggers import CSVLogger
from torch import nn

from callbacks import FeatureMap, feature_map
from datamodules import Digits
from lightning_modules import Classifier
from networks import InputError


class Pictures(CSVLogger):
    def __init__(self, folder):
        super().__init__(folder, "", "")
        self.images = []

    def log_image(self, key, images):
        self.images.append((key, images))


def expert_net(**options):
    """A small network with the running statistics of its data: its gates choose various experts."""
    seed_everything(0)
    net = timm.create_model(
        "expert_binary_resnet", blocks=(1, 1, 1, 1), expansion=0.125, groups=(1, 1, 1, 1), stem="resnet", deep=False,
        num_classes=10, in_chans=1, **options,
    )  # fmt: skip
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0
    net(batches()[0][0])
    return net


def run(net, folder, samples=1000, batch_size=90, logger=True, callbacks=(), module=Classifier, **options):
    """Test a network on the 360 test images, in batches of 90."""
    trainer = Trainer(
        default_root_dir=folder, logger=Pictures(folder) if logger else False, accelerator="cpu",
        callbacks=[callback := FeatureMap(samples), *callbacks], enable_progress_bar=False, enable_model_summary=False,
        **options,
    )  # fmt: skip
    try:
        trainer.test(module(net, 10, (1, 8, 8)), Digits(batch_size), verbose=False)
    finally:
        assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())
        assert callback._parts == callback._handles == []
        assert callback._features is callback._choice is None
    return trainer


@pytest.fixture
def drawn(monkeypatch):
    """Arguments of each drawing."""
    calls = []
    monkeypatch.setattr(feature_map, "draw", lambda *arguments: calls.append(arguments))
    return calls


def batches(samples=360):
    data = Digits(90)
    data.setup()
    loader = list(data.test_dataloader())
    return [inputs for inputs, _ in loader], torch.cat([labels for _, labels in loader])[:samples]


@pytest.mark.parametrize("samples", [1000, 100, 90])
def test_features_and_choices_are_those_computed_by_hand(tmp_path, drawn, samples):
    net = expert_net()
    run(net, tmp_path, samples)
    net.eval()
    ((features, panels, path),) = drawn
    images, labels = batches(samples)
    last, seen = net.layer4[0].units[1].conv, []
    handle = last.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        by_hand = torch.cat([net.global_pool(net.forward_features(x)).flatten(1) for x in images])[:samples]
    handle.remove()
    assert torch.equal(features, by_hand)
    assert (features.dtype, features.device.type) == (torch.float32, "cpu")
    assert list(panels) == ["class", "expert chosen by layer4.0.units.1.conv.gate"]
    classes, experts = panels.values()
    assert torch.equal(classes[0], labels)
    assert classes[1] == Digits.class_names
    chosen = last.gate(torch.cat(seen).mean((2, 3)))[:samples]
    assert torch.equal(experts[0], chosen.argmax(1))
    assert len(experts[0].unique()) > 1
    assert experts[1] == [f"{i} ({(experts[0] == i).float().mean():.0%})" for i in range(4)]
    assert path == str(tmp_path / "features.png")


@pytest.mark.parametrize("options", [{"step": "one_expert"}, {"num_experts": 1}, {"routing": "mixture"}])
def test_without_a_choice_there_are_the_classes_alone(tmp_path, drawn, options):
    run(expert_net(**options), tmp_path)
    ((features, panels, _),) = drawn
    assert len(features) == 360
    assert list(panels) == ["class"]


class Tokens(nn.Module):
    """Its last Linear does not see a row for each sample."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 10)

    def forward(self, x):
        return self.linear(x.flatten(0, 2)).view(len(x), 8, 10).mean(1)


class Headless(nn.Sequential):
    def get_classifier(self):
        return nn.Identity()  # as timm's networks without classes


@pytest.mark.parametrize("kind", [nn.Sequential, Headless])
def test_without_a_classifier_of_its_own_the_last_linear_is_taken(tmp_path, drawn, kind):
    seed_everything(0)
    hidden = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU())
    run(kind(*hidden, nn.Linear(16, 10)), tmp_path)
    ((features, panels, _),) = drawn
    with torch.inference_mode():
        assert torch.equal(features, torch.cat([hidden(x) for x in batches()[0]]))
    assert list(panels) == ["class"]


def test_a_network_without_features_to_take_is_told(tmp_path, drawn, caplog):
    with caplog.at_level("INFO"):
        run(nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten()), tmp_path)
        run(Tokens(), tmp_path)
    assert [message for message in caplog.messages if "features.png" in message] == [
        "no features.png: the network has neither get_classifier() nor an nn.Linear",
        "no features.png: the classifier saw 0 samples, not 10 or more with features that are finite and differ",
    ]
    assert drawn == []


def test_what_works_in_place_behind_the_hook_changes_nothing(tmp_path, drawn):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(64, 10))

        def get_classifier(self):
            return self.fc

        def forward(self, x):
            return self.fc(x.flatten(1) * 1)

    run(Net(), tmp_path)
    assert torch.equal(drawn[0][0], torch.cat(batches()[0]).flatten(1))


def test_nothing_is_drawn_where_nothing_listens_or_too_little_is_seen(tmp_path, drawn):
    net = expert_net()
    run(net, tmp_path, logger=False)
    run(net, tmp_path, fast_dev_run=True)
    run(net, tmp_path, batch_size=9, limit_test_batches=1)
    net.layer4[0].units[1].conv.scale.data.fill_(float("nan"))
    run(net, tmp_path)
    dead = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    dead[1].bias.data.fill_(-1e4)  # t-SNE ends the process where all features are equal
    run(dead, tmp_path)
    assert drawn == []
    with pytest.raises(InputError, match="samples=9: a map of features takes at least 10"):
        FeatureMap(9)


class Interrupt(Callback):
    def on_test_batch_end(self, *args):
        raise InputError("stopped")


def test_hooks_go_with_a_test_that_fails(tmp_path, drawn):
    with pytest.raises(InputError, match="stopped"):
        run(expert_net(), tmp_path, callbacks=[Interrupt()])
    assert drawn == []


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_the_picture_is_in_the_run_folder_and_in_loggers(tmp_path, caplog):
    with caplog.at_level("INFO"):
        trainer = run(expert_net(), tmp_path, samples=40)
    path = tmp_path / "features.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert trainer.logger.images == [("pictures/features", [str(path)])]
    (said,) = [message for message in caplog.messages if "features" in message]
    assert said == f"features of 40 test samples by class and expert chosen by layer4.0.units.1.conv.gate: {path}"


def test_drawing_is_deterministic_and_takes_any_number_of_samples_classes_and_features(tmp_path):
    for n, classes, width, scale in [(10, 3, 5, 1), (30, 100, 4, 1e30), (12, 15, 1, 1e-30)]:
        features = torch.randn(n, width, generator=torch.Generator().manual_seed(0)) * scale
        features[0], features[1:7] = 3 * scale, features[1]
        panels = {"class": (torch.arange(n) % classes, range(classes))}
        pictures = []
        for _ in range(2):
            feature_map.draw(features, panels, str(tmp_path / "map.png"))
            pictures.append((tmp_path / "map.png").read_bytes())
        assert pictures[0] == pictures[1]
        assert pictures[0].startswith(b"\x89PNG")
