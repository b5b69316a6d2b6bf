"""Starting from other weights: what matches is taken, what does not is said."""

import pytest
import torch
from pytorch_lightning import Trainer
from safetensors.torch import save_file

from datamodules import Digits
from lightning_modules import Biprop, Classifier, ExpertBinary
from lightning_modules.initial import copy_into, read
from networks import InputError


def classifier(seed, **arguments):
    torch.manual_seed(seed)
    return Classifier("conv2", 10, (1, 8, 8), {"width": 0.25}, **arguments)


def test_takes_checkpoints_state_dicts_and_safetensors_of_module_or_network(tmp_path):
    source = classifier(1)
    torch.save({"state_dict": source.state_dict(), "epoch": 3}, tmp_path / "run.ckpt")
    torch.save(source.network.state_dict(), tmp_path / "network.pth")
    save_file(source.network.state_dict(), tmp_path / "network.safetensors")
    for name in ("run.ckpt", "network.pth", "network.safetensors"):
        module = classifier(2)
        report = copy_into(module, read(tmp_path / name))
        assert (
            report == f"{len(source.state_dict())} of {len(source.state_dict())} tensors start from {tmp_path / name}"
        )
        for key, value in source.state_dict().items():
            assert torch.equal(module.state_dict()[key], value)


def test_reports_what_did_not_match(tmp_path):
    source = classifier(1).network.state_dict()
    names = sorted(source)
    other = {**source, names[0]: torch.zeros(3, 3), "unknown.weight": torch.zeros(2)}
    del other[names[1]]
    torch.save(other, tmp_path / "other.pt")
    module = classifier(2)
    before = {name: value.clone() for name, value in module.network.state_dict().items()}
    assert copy_into(module, read(tmp_path / "other.pt")).splitlines() == [
        f"{len(source) - 2} of {len(source)} tensors start from {tmp_path / 'other.pt'}",
        f"  not in it, as built: 1, such as network.{names[1]}",
        f"  of another size, as built: 1, such as network.{names[0]}",
        "  in it, but not here: 1, such as network.unknown.weight",
    ]
    after = module.network.state_dict()
    for name in names:
        assert torch.equal(after[name], before[name] if name in names[:2] else source[name])


def test_a_ticket_starts_from_dense_weights_and_keeps_its_own_scores(tmp_path):
    dense = classifier(1)
    torch.save(dense.network.state_dict(), tmp_path / "dense.pt")
    torch.manual_seed(2)
    ticket = Biprop("conv2", 10, (1, 8, 8), {"width": 0.25}, initial_checkpoint=str(tmp_path / "dense.pt"))
    ticket.load_initial()
    (name, weight), *_ = dense.network.state_dict().items()
    assert torch.equal(ticket.network.state_dict()[name], weight)
    assert ticket.network.state_dict()[name.replace("weight", "scores")].abs().sum() > 0


def test_training_starts_there_but_a_resumed_run_does_not(tmp_path):
    torch.save(classifier(1).state_dict(), tmp_path / "initial.pt")
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path)
    seen = []

    class Recorded(Classifier):
        def on_train_start(self):
            super().on_train_start()
            seen.append({name: value.clone() for name, value in self.state_dict().items()})

    arguments = ("conv2", 10, (1, 8, 8), {"width": 0.25})
    first = Recorded(*arguments, initial_checkpoint=str(tmp_path / "initial.pt"))
    trainer = Trainer(max_epochs=1, limit_train_batches=3, enable_checkpointing=False, **quiet)
    trainer.fit(first, datamodule=Digits())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    (tmp_path / "initial.pt").unlink()  # need not be there any more
    second = Recorded(*arguments, initial_checkpoint=str(tmp_path / "initial.pt"))
    trainer = Trainer(max_epochs=2, limit_train_batches=3, enable_checkpointing=False, **quiet)
    trainer.fit(second, datamodule=Digits(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    for name, value in classifier(1).state_dict().items():
        assert torch.equal(seen[0][name], value)
        assert torch.equal(seen[1][name], first.state_dict()[name])


class Evil:
    def __reduce__(self):
        return open, ("executed", "w")


def test_refusals(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="initial_checkpoint: no file at nowhere"):
        copy_into(classifier(0), read("nowhere.ckpt"))
    (tmp_path / "short.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError, match=r"short.pt is cut short or has no weights"):
        copy_into(classifier(0), read(tmp_path / "short.pt"))
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match=r"evil.pt is cut short or has no weights"):
        copy_into(classifier(0), read(tmp_path / "evil.pt"))
    assert not (tmp_path / "executed").exists()
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"none of its 1 tensors has a name and size of this network's, such as netw"):
        copy_into(classifier(0), read(tmp_path / "other.pt"))
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InputError, match=r"list.pt is cut short or has no weights"):
        copy_into(classifier(0), read(tmp_path / "list.pt"))


def test_training_starts_from_the_authors_files(tmp_path):
    """A released ticket's layout; that of expert binary networks is known by its names, and another one refused."""
    source = Biprop("conv2", 10, (3, 16, 16), keep_fraction=0.3, network_args={"width": 0.25})
    released = {
        f"module.{name}": tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        for name, tensor in source.network.state_dict().items()
        if not name.endswith("sign_seed")
    }
    torch.save({"state_dict": released}, tmp_path / "model_best.pth")
    options = dict(network_args={"width": 0.25}, initial_checkpoint=str(tmp_path / "model_best.pth"))
    ticket = Biprop("conv2", 10, (3, 16, 16), keep_fraction=0.3, **options)
    ticket.load_initial()
    image = torch.randn(2, 3, 16, 16)
    assert torch.equal(ticket.eval()(image), source.eval()(image))

    torch.save({"layer1.0.conv1.alpha2": torch.ones(1)}, tmp_path / "packed.pth")
    experts = ExpertBinary("resnet18", 10, (3, 32, 32), initial_checkpoint=str(tmp_path / "packed.pth"))
    with pytest.raises(InputError, match="the released checkpoint is of another network"):
        experts.load_initial()
