"""Options of the smaller commands, places that cannot be written, disks that are full."""

import errno
import os
import shutil

import pytest

SEEDS = "seeds -c small.yaml "

CASES = [
    ("count", 2, "one of the arguments --network -c/--config is required; frugal count --help"),
    ("count --network conv2 -c small.yaml", 2, "not allowed with argument --network; frugal count --help"),
    ("count --network conv2", 2, "--network needs --input, such as --input 3,224,224"),
    ("count --network conv2 --input 3,a", 2, "--input: '3,a' is no size, such as 3,224,224"),
    ("count --network conv2 --input 3", 1, "ConvNet does not accept an input of 3"),
    ("count --network conv2 --input 3,1,1", 1, "conv2 halves its input 1 times", "larger images"),
    ("count --network resnet81 --input 3,32,32", 1, "no network is called 'resnet81'; did you mean resnet18"),
    ("count --network conv2 --input 3,8,8 --num_classes 0", 2, "--num_classes must be positive"),
    ("count --network conv2 --input 3,8,8 --network_args '{width: '", 2, "'{width: ' is no mapping, such as"),
    ("count --network conv2 --input 3,8,8 --network_args 7", 2, "'7' is no mapping, such as '{width: 0.5}'"),
    ("count --network conv2 --input 3,8,8 --model.x 1", 2, "unknown: --model.x 1; frugal count --help"),
    ("latency resnet81", 1, "no network is called 'resnet81'; did you mean resnet18"),
    ("latency 'rexnet{width'", 1, "'rexnet{width' is no NAME, NAME{ARGUMENT: VALUE} or NAME@SIDE"),
    ("latency conv2 --runs 0", 2, "--runs, --batch and --threads must be positive"),
    ("latency conv2 --runs few", 2, "--runs: invalid int value: 'few'; frugal latency --help"),
    ("latency conv2@32 --png l.png", 1, "--png draws the paper's accuracies, which it has of rexnet_plain"),
    ("seeds", 2, "required: -c/--config; frugal seeds --help"),
    (SEEDS + "--seeds 0,0", 2, "0,0 names a seed twice"),
    (SEEDS + "--seeds a,b", 2, "'a,b' are no seeds, such as 0,1,2"),
    (SEEDS + "--seeds=-1", 1, "seed_everything=-1 must lie in 0 to 2**32 - 1"),
    (SEEDS + "--seeds 0 --ckpt_path best", 2, "--ckpt_path is chosen for each seed: leave it out"),
    ("cross-validate -c small.yaml", 1, "Digits has no folds to validate across: datamodules.ESC50 has"),
    ("cross-validate -c small.yaml --data.test_fold 1", 2, "--data.test_fold is chosen for each fold: leave it out"),
    ("cross-validate -c small.yaml --seed_everything one", 2, "invalid int value: 'one'"),
    ("rank -c study.yaml --study.networks 0", 1, "study.networks=0", "must be at least 1"),
    ("rank -c study.yaml --study.networks many", 2, "study.networks: Expected a int. Got value: many"),
    ("rank -c study.yaml --study.d_out_range [5,4]", 1, "d_out_range=(5, 4) begin at 10 or more"),
    ("rank -c study.yaml --study.init none", 2, "study.init: Expected a Literal['default', 'gaussian']"),
    ("search -c search.yaml --search.budget z", 1, "search.budget='z' is none of a, b, c, d", "give one, or numbers"),
    ("search -c search.yaml --search.seeds [0,0]", 1, "search.seeds=[0, 0] must be different numbers"),
    ("search -c search.yaml --search.lists [[3,2,1,1,1]]", 1, "[3, 2, 1, 1, 1]", "that do not decrease"),
    ("search -c search.yaml --seed_everything 3", 1, "seed_everything is chosen for each trial: leave it out"),
    ("search -c search.yaml --ray.cpus 0", 1, "ray.cpus=0", "too few"),
    # places
    ("fit -c small.yaml --trainer.default_root_dir runs/small/seed0", 1, "holds a run: --ckpt_path last resumes it"),
    ("fit -c small.yaml --trainer.default_root_dir ticket.safetensors", 1, "ticket.safetensors is a file", "rename it"),
    ("fit -c small.yaml --checkpoint.dirpath ticket.safetensors", 1, "ticket.safetensors is a file", "rename it"),
    (SEEDS + "--seeds 0 --results small.yaml", 1, "small.json is where a result goes", "small.yaml is no folder"),
    ("rank -c blocked.yaml", 1, "results/blocked.json is a folder, and a result goes there: rename it"),
    ("search -c blocked.yaml", 1, "results/blocked.json is a folder, and a result goes there: rename it"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_options_and_places(case, here, refuse):
    (here / "study.yaml").write_text("study: {networks: 1}\n")
    (here / "search.yaml").write_text("search: {candidates: 2, published: false}\n")
    (here / "blocked.yaml").write_text("# nothing but defaults\n{}\n")
    (here / "results/blocked.json").mkdir()
    refuse(*case)


@pytest.mark.parametrize("command", ["test", "predict", "validate"])
def test_a_file_stands_where_results_go(command, here, refuse):
    (here / "runs/small/seed0" / command).write_text("a note")
    refuse(f"{command} -c small.yaml", 1, f"runs/small/seed0/{command} cannot be used (File exists): see to its path")


def test_a_file_stands_where_runs_go(here, refuse):
    shutil.rmtree(here / "runs")
    (here / "runs").write_text("a note")
    refuse("fit -c small.yaml", 1, "runs/small cannot be used (Not a directory): see to its path, rights and disk")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_refuses(number, refuse, monkeypatch):
    def refused(*arguments, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("commands.run_folder.Path.mkdir", refused)  # of the folder that is locked
    refuse("fit -c small.yaml", 1, f"a file cannot be used ({os.strerror(number)}): see to its path, rights and disk")


def test_a_fault_of_ours_keeps_its_traceback(here, monkeypatch):
    import frugal

    def broken(*arguments, **options):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "forgotten.txt")

    monkeypatch.setattr("networks.create", broken)
    with pytest.raises(FileNotFoundError, match=r"forgotten\.txt"):
        frugal.main(["count", "--network", "conv2", "--input", "3,8,8"])


@pytest.mark.xfail(strict=True, reason="mended on another branch")
def test_an_earlier_run_stays_where_it_is_if_the_first_batch_is_refused(refuse, monkeypatch):
    from networks import InputError

    def refused(*arguments):
        raise InputError("a photograph cannot be decoded: unpack it again")

    monkeypatch.setattr("datamodules.images.Images.__getitem__", refused)
    refuse("fit -c small.yaml", 1, "a photograph cannot be decoded")
