"""Checkpoints, tickets and runs that are not there, damaged, dangerous or of something else."""

import pytest
import torch

FIT, TEST = "fit -c small.yaml ", "test -c small.yaml "
BEST, LAST = "runs/small/seed0/checkpoints/best.ckpt", "runs/small/seed0/checkpoints/last.ckpt"
STARTS = "config: small.yaml\nmodel.init_args.initial_checkpoint: "  # and a config


class Evil:
    def __reduce__(self):
        return open, ("executed", "w")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def edit(path, **changes):
    """Change entries of a checkpoint; those that become None go."""
    content = {**torch.load(path, weights_only=True), **changes}
    torch.save({key: value for key, value in content.items() if value is not None}, path)


@pytest.fixture
def files(here):
    """Files that are no checkpoints of this run."""
    torch.save({"state_dict": {}, "callbacks": Evil()}, here / "evil.ckpt")
    torch.save([1, 2], here / "list.ckpt")
    torch.save({"state_dict": {"a": torch.zeros(1)}}, here / "other.ckpt")
    torch.save({"state_dict": {}}, here / "bare.ckpt")
    (here / "empty.ckpt").touch()
    (here / "next.yaml").write_text(STARTS + "first.yaml\n")
    (here / "first.yaml").write_text("config: small.yaml\n")
    (here / "lost.yaml").write_text(STARTS + "gone.yaml\n")
    (here / "a.yaml").write_text(STARTS + "b.yaml\n")
    (here / "b.yaml").write_text(STARTS + "a.yaml\n")


CASES = [
    (TEST + "--ckpt_path nowhere.ckpt", 1, "no checkpoint at nowhere.ckpt; --ckpt_path takes a file, last or best"),
    (TEST + "--seed_everything 7", 1, "no checkpoint at runs/small/seed7/checkpoints/last.ckpt: run `frugal fit`"),
    ("predict -c small.yaml --seed_everything 7", 1, "no checkpoint at runs/small/seed7/", "run `frugal fit`"),
    (FIT + "--seed_everything 7 --ckpt_path best", 1, "no checkpoint at runs/small/seed7/", "give --ckpt_path FILE"),
    (TEST + "--ckpt_path empty.ckpt", 1, "empty.ckpt is cut short or not a checkpoint (EOFError)", "take another"),
    (TEST + "--ckpt_path list.ckpt", 1, "list.ckpt is cut short or not a checkpoint (it has no state_dict)"),
    (TEST + "--ckpt_path bare.ckpt", 1, "bare.ckpt: the checkpoint is of another network", "tensors are missing"),
    (TEST + "--model.keep_fraction 0.1", 1, f"{LAST}: ", "keep_fraction=0.5, this model has 0.1; give the config"),
    (TEST + "--model.network_args.width 0.25", 1, f"{LAST}: ", "this model has {'width': 0.25}; give the config"),
    (TEST + "--model.network conv4", 1, f"{LAST}: ", "network=conv2, this model has conv4; give the config"),
    (TEST + "--model Classifier", 1, f"{LAST}: ", "trained by Biprop, not by Classifier; give the config"),
    (FIT + "--ckpt_path last --model.keep_fraction 0.2", 1, "the run began with model.init_args.keep_fraction=0.5"),
    # other weights to start from
    (FIT + "--model.initial_checkpoint nowhere.ckpt", 1, "initial_checkpoint: no file at nowhere.ckpt; it takes"),
    (FIT + "--model.initial_checkpoint other.ckpt", 1, "other.ckpt: none of its 1 tensors has a name and size of this"),
    (FIT + "--model.initial_checkpoint ticket.safetensors", 1, "ticket.safetensors: none of its 10 tensors has a name"),
    (FIT + f"--model.initial_checkpoint {LAST}", 1, "lies in the folder that this run sets aside: copy it first"),
    ("fit -c next.yaml", 1, "no checkpoint at runs/first/seed0/", "run `frugal fit -c first.yaml` first, or"),
    ("steps -c lost.yaml", 1, "no config at gone.yaml, from which lost.yaml starts"),
    ("steps -c a.yaml", 1, "configs start from each other in a circle: a.yaml -> b.yaml -> a.yaml"),
    # tickets
    (TEST + "--ckpt_path ticket.safetensors --model.network conv4", 1, "is a ticket of another network"),
    (TEST + "--ckpt_path ticket.safetensors --model Classifier", 1, "is a ticket of Biprop's, not of Classifier's"),
    (FIT + "--ckpt_path ticket.safetensors", 1, "ticket.safetensors is a ticket: it can be scored, but has no scores"),
    ("export nowhere.ckpt --ticket t.safetensors", 1, "no checkpoint at nowhere.ckpt"),
    ("export bare.ckpt --ticket t.safetensors", 1, "bare.ckpt does not say which network it has: give the config"),
    (f"export {LAST} --ticket t.pt", 2, "--ticket t.pt: a ticket file ends in .safetensors; frugal export --help"),
    (f"export {LAST} --ticket nowhere/t.safetensors", 2, "nowhere/t.safetensors: give a file in a folder that exists"),
    ("export ticket.safetensors --ticket ticket.safetensors", 2, "--ticket would overwrite the checkpoint"),
    (f"export {LAST} --ticket t.safetensors -c small.yaml --model Classifier", 1, "tickets are Biprop's"),
    (f"export {LAST} --ticket t.safetensors --model.keep_fraction 1", 2, "unknown: --model.keep_fraction 1"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_files_that_are_of_no_use(case, files, refuse):
    refuse(*case)


DAMAGED = {
    "cut": (TEST, LAST, cut, f"{LAST} is cut short or not a checkpoint", "take another, such as best.ckpt beside it"),
    "cut, resumed": (FIT + "--ckpt_path last", LAST, cut, f"{LAST} is cut short or not a checkpoint", "best.ckpt"),
    "cut, exported": (f"export {LAST} --ticket t.safetensors", LAST, cut, f"{LAST} is cut short", "take another"),
    "best is gone": (TEST + "--ckpt_path best", BEST, lambda path: path.unlink(), f"no checkpoint at {BEST}"),
    "a folder": (TEST, LAST, lambda path: (path.unlink(), path.mkdir()), f"no checkpoint at {LAST}"),
    "another method": (TEST, LAST, lambda path: edit(path, method="Epitome"), "trained by Epitome, not by Biprop"),
    "no state of the optimiser": (
        FIT + "--ckpt_path last --trainer.max_epochs 2",
        LAST,
        lambda path: edit(path, optimizer_states=None),
        "the checkpoint has weights alone: start from them with --model.initial_checkpoint",
    ),
    "code for a network": (
        f"export {LAST} --ticket t.safetensors",
        LAST,
        lambda path: edit(path, hyper_parameters={"network": "os.system"}),
        f"{LAST} is of a network of your own: give the config",
    ),
    "record of the run": (
        FIT + "--ckpt_path last --trainer.max_epochs 2",
        "runs/small/seed0/config.yaml",
        lambda path: path.write_text("model: ["),
        "runs/small/seed0/config.yaml is damaged: restore it, or remove it",
    ),
    **{
        f"ticket {name}": (
            TEST + "--ckpt_path ticket.safetensors",
            "ticket.safetensors",
            damage,
            f"ticket.safetensors {what}",
            "copy it again",
        )
        for name, damage, what in (
            ("cut", cut, "is cut short or damaged"),
            ("of no bytes", lambda path: path.write_bytes(b""), "is cut short or damaged"),
            ("with a flipped bit", flip_a_bit, "was changed since it was written (its SHA-256 differs)"),
        )
    },
}


@pytest.mark.parametrize("name", DAMAGED)
def test_files_of_the_run_that_are_damaged(name, here, refuse):
    command, path, damage, *words = DAMAGED[name]
    damage(here / path)
    refuse(command, 1, *words)


@pytest.mark.parametrize(
    "command",
    [
        TEST + "--ckpt_path evil.ckpt",
        FIT + "--model.initial_checkpoint evil.ckpt",
        "export evil.ckpt --ticket t.safetensors",
    ],
)
def test_nothing_in_a_file_is_executed_nor_advised_to_be(command, files, here, refuse):
    line = refuse(command, 1, "evil.ckpt is cut short or ", "Unsupported global: GLOBAL io.open", "take another")
    assert "trust" not in line
    assert not (here / "executed").exists()
