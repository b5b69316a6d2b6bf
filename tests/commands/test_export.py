"""`frugal export`, and `frugal test` with what it writes."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file

import frugal
import networks
from lightning_modules import Biprop

CONFIG = """\
model:
  class_path: lightning_modules.Biprop
  init_args:
    network: conv2
    network_args: {width: 0.25}
    keep_fraction: 0.3
trainer: {max_epochs: 1, enable_progress_bar: false}
"""


def run(*arguments):
    frugal.main([str(argument) for argument in arguments])


def refused(capsys, *arguments):
    with pytest.raises(SystemExit):
        run(*arguments)
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "error: " in line
    return line


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "small.yaml").write_text(CONFIG)
        run("fit", "-c", "small.yaml")
        run("test", "-c", "small.yaml")
    return folder


@pytest.fixture
def here(trained, monkeypatch, tmp_path):
    monkeypatch.chdir(trained)
    return tmp_path


CHECKPOINT = "runs/small/seed0/checkpoints/last.ckpt"


def metrics():
    with open("runs/small/seed0/test/metrics.json") as file:
        return json.load(file)


@pytest.mark.parametrize("options", [[], ["--signs", "bits"]])
def test_a_ticket_scores_as_its_checkpoint_with_another_seed(here, options):
    expected = metrics()
    run("export", CHECKPOINT, "--ticket", here / "t.safetensors", *options)
    run("test", "-c", "small.yaml", "--ckpt_path", here / "t.safetensors", "--seed_everything", 7)
    with open("runs/small/seed7/test/metrics.json") as file:
        assert json.load(file) == expected


def test_plain_is_an_ordinary_state_dict_from_a_checkpoint_and_from_a_ticket(here, capsys):
    run("export", CHECKPOINT, "--ticket", here / "t.safetensors")
    for source, name in ((CHECKPOINT, "a.safetensors"), (here / "t.safetensors", "b.safetensors")):
        run("export", source, "--ticket", here / name, "--format", "plain")
    assert (here / "a.safetensors").read_bytes() == (here / "b.safetensors").read_bytes()
    net = timm.create_model("conv2", width=0.25, in_chans=1, img_size=8)
    net.load_state_dict(load_file(here / "a.safetensors"))
    ticket = networks.biprop.load_ticket(here / "t.safetensors")
    x = torch.randn(5, 1, 8, 8)
    assert torch.equal(net.eval()(x), ticket(x))
    assert "conv2" in networks.biprop.tickets.architecture(here / "t.safetensors").values()


def test_a_released_checkpoint_becomes_a_ticket_with_a_config(here, capsys):
    module = Biprop("conv2", 10, (1, 8, 8), {"width": 0.25}, keep_fraction=0.3)
    state = {}
    for name, tensor in module.network.state_dict().items():
        if not name.endswith("sign_seed"):
            state[f"module.{name}"] = tensor[..., None, None] if tensor.ndim == 2 else tensor
    state = {name: -tensor if name.endswith("weight") else tensor for name, tensor in state.items()}  # no seed's signs
    module.network.load_state_dict(networks.biprop.from_release(state, module.network))
    torch.save({"epoch": 3, "arch": "Conv2", "state_dict": state, "best_acc1": 50.0}, here / "released.pth")
    line = refused(capsys, "export", here / "released.pth", "--ticket", here / "t.safetensors")
    assert "does not say which network it has: give the config that it was trained with, -c" in line
    run("export", here / "released.pth", "-c", "small.yaml", "--ticket", here / "t.safetensors")
    x = torch.randn(3, 1, 8, 8)
    ticket = networks.biprop.load_ticket(here / "t.safetensors")
    assert torch.equal(ticket(x), module.network.eval()(x))
    assert (here / "t.safetensors").stat().st_size > sum(p.numel() for p in ticket.parameters()) / 2 * (1 + 0.3) / 8


def test_mistakes_get_one_line(here, capsys, tmp_path):
    run("export", CHECKPOINT, "--ticket", here / "t.safetensors")
    ticket = here / "t.safetensors"
    assert "has no scores to train further" in refused(capsys, "fit", "-c", "small.yaml", "--ckpt_path", ticket)
    wider = ["--model.network_args.width", 0.5]
    line = refused(capsys, "test", "-c", "small.yaml", "--ckpt_path", ticket, *wider)
    assert "ticket of another network: its convs.0 has weights (16, 1, 3, 3), here weights (32, 1, 3, 3)" in line
    dense = ["--model", "Classifier", "--model.network", "conv2"]
    assert "is a ticket of Biprop's, not of Classifier's" in refused(capsys, "test", *dense, "--ckpt_path", ticket)
    (here / "cut.safetensors").write_bytes(ticket.read_bytes()[:-9])
    cut = refused(capsys, "test", "-c", "small.yaml", "--ckpt_path", here / "cut.safetensors")
    assert "cut.safetensors is cut short or damaged" in cut
    for absent in ("none.safetensors", "none.ckpt"):
        line = refused(capsys, "export", absent, "--ticket", ticket)
        assert f"no checkpoint at {absent}" in line
    assert "ends in .safetensors" in refused(capsys, "export", CHECKPOINT, "--ticket", here / "t.ckpt")
    assert "would overwrite" in refused(capsys, "export", ticket, "--ticket", ticket)
    (here / "folder.safetensors").mkdir()
    for place in (here / "a/b.safetensors", here / "folder.safetensors"):
        assert "give a file in a folder that exists" in refused(capsys, "export", ticket, "--ticket", place)


def test_a_file_names_no_code_to_run(here, capsys):
    """Import paths are a user's to give: one in a checkpoint or a ticket is not followed."""
    checkpoint = torch.load(CHECKPOINT, weights_only=True)
    checkpoint["hyper_parameters"]["network"] = "subprocess.run"
    torch.save(checkpoint, here / "evil.ckpt")
    line = refused(capsys, "export", here / "evil.ckpt", "--ticket", here / "a.safetensors")
    assert "is of a network of your own: give the config" in line
    net = timm.create_model("conv2", img_size=8)
    networks.biprop.apply(net)
    evil = {"name": "subprocess.run", "input_size": [3, 8, 8], "num_classes": 10, "args": {"args": ["true"]}}
    networks.biprop.save_ticket(net, here / "evil.safetensors", evil)
    with pytest.raises(networks.InputError, match="of a network of your own: give it"):
        networks.biprop.load_ticket(here / "evil.safetensors")


def test_a_file_names_no_weights_to_fetch(here):
    """timm would download `pretrained` weights and open `checkpoint_path`; a ticket has its own."""
    net = timm.create_model("conv2", img_size=8, in_chans=1)
    networks.biprop.apply(net)
    fetching = {"pretrained": True, "checkpoint_path": "/absent.pth"}
    architecture = {"name": "conv2", "input_size": [1, 8, 8], "num_classes": 10}
    networks.biprop.save_ticket(net, here / "t.safetensors", {**architecture, "args": fetching})
    assert networks.biprop.load_ticket(here / "t.safetensors")(torch.randn(1, 1, 8, 8)).shape == (1, 10)
    checkpoint = torch.load(CHECKPOINT, weights_only=True)
    checkpoint["hyper_parameters"]["network_args"] |= fetching
    torch.save(checkpoint, here / "c.ckpt")
    run("export", here / "c.ckpt", "--ticket", here / "c.safetensors")
    assert networks.biprop.tickets.architecture(here / "c.safetensors")["args"] == {"width": 0.25}


def test_checkpoints_in_the_format_of_before_pytorch_1_6(here):
    old = torch.load(CHECKPOINT, weights_only=True)
    torch.save(old, here / "old.ckpt", _use_new_zipfile_serialization=False)
    for source, name in ((CHECKPOINT, "new"), (here / "old.ckpt", "old")):
        run("export", source, "--ticket", here / f"{name}.safetensors")
    assert (here / "old.safetensors").read_bytes() == (here / "new.safetensors").read_bytes()
