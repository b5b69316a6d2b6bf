"""`frugal steps`, and configs that start from others or are taught by them."""

import contextlib
import io
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from runs import same

import frugal
from callbacks import LastCheckpoint
from commands import references, seeds, steps
from commands.train import parse
from networks import InputError

TRAINER = """\
trainer:
  max_epochs: 1
  limit_train_batches: 3
  limit_val_batches: 1
  limit_test_batches: 1
  log_every_n_steps: 1
  enable_progress_bar: false
"""
NETWORK = """\
model:
  class_path: lightning_modules.ExpertBinary
  init_args:
    network: expert_binary_resnet
    network_args: {blocks: [1, 1, 1, 1], expansion: 0.125, groups: [1, 1, 1, 1], stem: cifar, deep: false}
    num_experts: 1
    step: fp
    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.01}}
"""
SMALLER = NETWORK.replace("expert_binary_resnet", "conv2").replace(
    NETWORK.splitlines()[4].strip(), "network_args: {width: 0.1}"
)


def taught(teacher, *arguments):
    """A callback; 8x8 pixels leave one in the last stage, and layer1 has more."""
    more = "".join(f", {argument}" for argument in arguments)
    return (
        "trainer.callbacks:\n  - class_path: callbacks.Distillation\n"
        f"    init_args: {{checkpoint: configs/small/{teacher}.yaml{more}}}\n"
    )


def step(name, before):
    return f"model.init_args.step: {name}\nmodel.init_args.initial_checkpoint: configs/small/{before}.yaml\n"


CONFIGS = {
    "teacher": "model:\n  class_path: lightning_modules.Classifier\n"
    "  init_args: {network: conv2, network_args: {width: 0.1}}\n" + TRAINER,
    "fp": NETWORK + TRAINER + taught("teacher", "attention_weight: 0"),
    "one_expert": "config: fp.yaml\n" + step("one_expert", "fp") + taught("fp"),
    "experts": "config: one_expert.yaml\nmodel.init_args.num_experts: 3\n" + step("experts", "one_expert"),
    "binary": "config: experts.yaml\n" + step("binary", "experts") + taught("experts", "attention_weight: 0"),
    "alone": SMALLER + TRAINER,
    "after_alone": "config: alone.yaml\n" + step("one_expert", "alone"),
}
CHAIN = [f"configs/small/{name}.yaml" for name in ("teacher", "fp", "one_expert", "experts", "binary")]


def last(name, seed=0):
    return Path(f"runs/small/{name}/seed{seed}/checkpoints/last.ckpt")


def config_of(name):
    return f"configs/small/{name}.yaml"


def write(name, text):
    path = Path(config_of(name))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def in_this_process(*arguments):
    try:
        frugal.main(list(arguments))
    except SystemExit as stop:
        return stop.code or 0
    return 0


class Process:
    """Commands run in this process, to be quick; `calls` has them."""

    def __init__(self, patch):
        self.calls = []
        patch.setattr(seeds, "process", self)

    def __call__(self, *arguments):
        self.calls.append(arguments)
        return in_this_process(*arguments)


def prepare(patch, folder):
    patch.chdir(folder)
    patch.setenv("COLUMNS", "200")
    for module in ("curves", "layer_monitor", "feature_map"):
        patch.setattr(f"callbacks.{module}.draw", lambda *args: None)
    return Process(patch)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder where all steps are done: what was called, and what was printed."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        process = prepare(patch, folder)
        for name, text in CONFIGS.items():
            write(name, text)
        steps.main(["-c", config_of("after_alone")])
        process.calls.clear()
        printed.truncate(printed.seek(0))
        steps.main(["-c", CHAIN[-1]])
    return folder, process.calls, printed.getvalue()


@pytest.fixture
def done(trained, tmp_path, monkeypatch):
    """A copy of that folder, with its times."""
    shutil.copytree(trained[0], tmp_path / "work")
    return prepare(monkeypatch, tmp_path / "work")


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """The configs alone."""
    process = prepare(monkeypatch, tmp_path)
    for name, text in CONFIGS.items():
        write(name, text)
    return process


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        frugal.main([str(argument) for argument in arguments])
    assert stop.value.code == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("frugal: error: ")
    return line.removeprefix("frugal: error: ")


def files():
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in Path("runs").rglob("*") if path.is_file()}


def checkpoints():
    return {path: seen for path, seen in files().items() if path.suffix == ".ckpt"}


def state(path):
    return torch.load(path, weights_only=True)["state_dict"]


def rows(printed):
    """The last table's lines by config: {config: {column: cell}}."""
    lines = printed[printed.rindex("┏") :].splitlines()
    head, *body = [
        [cell.strip() for cell in line.replace("┃", "│").strip("│").split("│")] for line in lines if line[0] in "┃│"
    ]
    assert {len(row) for row in (head, *body)} == {len(head)}
    return {config_of(row[0]): dict(zip(head, row, strict=True)) for row in body}


def test_what_is_named_comes_first(trained, monkeypatch):
    monkeypatch.chdir(trained[0])
    teacher, fp, one_expert, experts, binary = CHAIN
    expected = {teacher: [], fp: [teacher], one_expert: [fp], experts: [one_expert, fp], binary: [experts]}
    found = steps.in_order(binary, [])
    assert found == expected
    assert list(found) == CHAIN
    _, calls, printed = trained
    assert calls == [
        call
        for config in CHAIN
        for call in (
            ("fit", "-c", config, "--seed_everything", "0", "--ckpt_path", "last"),
            ("test", "-c", config, "--seed_everything", "0"),
        )
    ]
    assert [line for line in printed.splitlines() if line.startswith("step ")] == [
        f"step {number} of 5: {config}" for number, config in enumerate(CHAIN, 1)
    ]


def test_results_and_table_have_what_was_tested(trained, monkeypatch):
    monkeypatch.chdir(trained[0])
    table = rows(trained[2])
    assert list(table) == CHAIN
    names = {*map(config_of, ("alone", "after_alone")), *CHAIN}
    assert {config_of(path.stem) for path in Path("results/small").iterdir()} == names
    seen = set()
    for config in CHAIN:
        name = Path(config).stem
        tested = json.loads(Path(f"runs/small/{name}/seed0/test/metrics.json").read_text())
        result = json.loads(Path(f"results/small/{name}.json").read_text())
        assert (result["config"], result["seeds"], result["overlays"]) == (config, [0], [])
        assert {key: value["values"] for key, value in result["metrics"].items() if key in tested} == {
            key: [value] for key, value in tested.items()
        }
        for column in ("test/loss", "test/top1", "best val/top1"):
            assert table[config][column] == f"{result['metrics'][column]['mean']:.4f}"
        assert table[config]["test/top1"] == f"{tested['test/top1']:.4f}"
        assert table[config]["hours"] == "0.00"
        seen.add(table[config]["test/loss"])
    assert len(seen) == 5


def test_each_step_has_what_the_one_before_left(trained, monkeypatch):
    monkeypatch.chdir(trained[0])
    for name, before in (("one_expert", "fp"), ("experts", "one_expert"), ("binary", "experts")):
        checkpoint = torch.load(last(name), weights_only=True)
        assert checkpoint["method"] == "ExpertBinary"
        assert checkpoint["hyper_parameters"]["step"] == name
        assert checkpoint["hyper_parameters"]["initial_checkpoint"] == str(last(before))
        saved = yaml.safe_load(Path(f"runs/small/{name}/seed0/config.yaml").read_text())
        assert saved["model"]["init_args"]["initial_checkpoint"] == config_of(before)  # with another seed, another file
        (teacher,) = saved["trainer"]["callbacks"]
        assert teacher["init_args"]["checkpoint"] == config_of("experts" if name == "binary" else "fp")
        logged = Path(f"runs/small/{name}/seed0/metrics.csv").read_text().splitlines()[0].split(",")
        assert {"train/logit_matching", "train/teacher_top1"} <= set(logged)
        assert ("train/attention_matching" in logged) == (name != "binary")
        assert not any("teacher" in key for key in checkpoint["state_dict"])


def test_what_is_done_is_not_trained_again(done, capsys):
    before, results = checkpoints(), {path: path.read_text() for path in Path("results").rglob("*.json")}
    steps.main(["-c", config_of("after_alone")])
    steps.main(["-c", CHAIN[1]])
    assert [call[0] for call in done.calls] == ["fit", "test"] * 4
    assert checkpoints() == before
    assert {path: path.read_text() for path in Path("results").rglob("*.json")} == results
    assert not list(Path("runs").rglob("seed0.1"))
    assert list(rows(capsys.readouterr().out)) == CHAIN[:2]


def test_a_step_that_is_interrupted_goes_on_from_there(done, capsys, monkeypatch):
    """Inside its epoch; its weights become those of the run that was not interrupted."""
    whole = state(last("after_alone"))
    shutil.rmtree("runs/small/after_alone")
    Path("results/small/after_alone.json").unlink()
    before = checkpoints()
    on_train_batch_end = LastCheckpoint.on_train_batch_end

    def stopped(self, trainer, *args):
        self._signal = 15 if trainer.global_step == 2 else self._signal
        on_train_batch_end(self, trainer, *args)

    monkeypatch.setattr(LastCheckpoint, "on_train_batch_end", stopped)
    with pytest.raises(SystemExit) as stop:
        frugal.main(["steps", "-c", config_of("after_alone")])
    assert stop.value.code == 143
    assert "seed 0 has stopped; the same command goes on from there" in capsys.readouterr().err
    assert [call[0] for call in done.calls] == ["fit", "test", "fit"]
    assert torch.load(last("after_alone"), weights_only=True)["global_step"] == 2
    assert not Path("results/small/after_alone.json").exists()
    monkeypatch.setattr(LastCheckpoint, "on_train_batch_end", on_train_batch_end)
    frugal.main(["steps", "-c", config_of("after_alone")])
    assert [call[0] for call in done.calls[3:]] == ["fit", "test"] * 2
    assert same(state(last("after_alone")), whole)
    assert {path: seen for path, seen in checkpoints().items() if path in before} == before
    assert list(rows(capsys.readouterr().out)) == [config_of("alone"), config_of("after_alone")]


def test_the_status_of_a_fit_that_ends_is_that_of_the_command(fresh, capsys, monkeypatch):
    def process(*arguments):
        return 143 if arguments[:3] == ("fit", "-c", config_of("after_alone")) else fresh(*arguments)

    monkeypatch.setattr(seeds, "process", process)
    with pytest.raises(SystemExit) as stop:
        frugal.main(["steps", "-c", config_of("after_alone"), "--seeds", "1"])
    assert stop.value.code == 143
    assert [call[0] for call in fresh.calls] == ["fit", "test"]
    assert "seed 1 has stopped; the same command goes on from there" in capsys.readouterr().err
    assert [path.name for path in Path("results/small").iterdir()] == ["alone.json"]
    before = checkpoints()
    assert before
    monkeypatch.setattr(seeds, "process", fresh)
    frugal.main(["steps", "-c", config_of("after_alone"), "--seeds", "1"])
    assert {path: seen for path, seen in checkpoints().items() if path in before} == before
    assert list(rows(capsys.readouterr().out)) == [config_of("alone"), config_of("after_alone")]
    hyper_parameters = torch.load(last("after_alone", 1), weights_only=True)["hyper_parameters"]
    assert hyper_parameters["initial_checkpoint"] == str(last("alone", 1))
    assert {path.parents[1].name for path in checkpoints()} == {"seed1"}


@pytest.mark.parametrize(("later", "stale"), [("alone", "after_alone"), ("teacher", "fp")])
def test_a_step_whose_predecessor_was_trained_later_is_refused(done, capsys, later, stale):
    """That started from it, or was taught by it."""
    frugal.main(["fit", "-c", config_of(later), "--trainer.limit_train_batches", "1"])
    before = checkpoints()
    assert Path(f"runs/small/{later}/seed0.1") in {path.parents[1] for path in before}
    line = refused(capsys, "steps", "-c", config_of(stale), "--trainer.limit_train_batches", "1")
    assert line == (
        f"runs/small/{stale}/seed0 was trained before runs/small/{later}/seed0, from which it starts: "
        "rename it, and the same command trains it anew"
    )
    assert checkpoints() == before
    assert [call[:3] for call in done.calls] == [(command, "-c", config_of(later)) for command in ("fit", "test")]


def test_once_renamed_a_stale_step_is_trained_anew(done):
    now = last("after_alone").stat().st_mtime + 60
    os.utime(last("alone"), (now, now))
    Path("runs/small/after_alone/seed0").rename("runs/small/after_alone/seed0.old")
    frugal.main(["steps", "-c", config_of("after_alone")])
    assert same(state(last("after_alone")), state("runs/small/after_alone/seed0.old/checkpoints/last.ckpt"))


def test_circles_and_missing_configs_are_refused_in_one_line(fresh, capsys):
    write("a", CONFIGS["alone"] + step("one_expert", "b"))
    write("b", CONFIGS["alone"] + step("one_expert", "c"))
    write("c", CONFIGS["alone"] + taught("a"))
    write("self", CONFIGS["alone"] + step("one_expert", "self"))
    write("orphan", CONFIGS["alone"] + step("one_expert", "gone"))
    write("grandchild", CONFIGS["alone"] + step("one_expert", "orphan"))
    circle = "configs start from each other in a circle: "
    for name, message in [
        ("a", circle + " -> ".join(map(config_of, "abca"))),
        ("b", circle + " -> ".join(map(config_of, "bcab"))),
        ("self", circle + " -> ".join(map(config_of, ("self", "self")))),
        ("gone", f"no config at {config_of('gone')}"),
        ("orphan", f"no config at {config_of('gone')}, from which {config_of('orphan')} starts"),
        ("grandchild", f"no config at {config_of('gone')}, from which {config_of('orphan')} starts"),
    ]:
        assert refused(capsys, "steps", "-c", config_of(name)) == message
    assert not fresh.calls
    assert not Path("runs").exists()


def test_what_is_chosen_for_each_seed_is_refused(fresh, capsys):
    for option in ("--ckpt_path=last", "--seed_everything"):
        with pytest.raises(SystemExit) as stop:
            frugal.main(["steps", "-c", CHAIN[0], option, "1"])
        assert stop.value.code == 2
        assert "is chosen for each seed: leave it out" in capsys.readouterr().err
    assert not fresh.calls


def test_a_fit_without_its_predecessor_is_refused_with_the_command_to_run(fresh, capsys):
    for options in ([], ["--ckpt_path", "last"]):
        for name, key, before in (("after_alone", "initial_checkpoint", "alone"), ("fp", "checkpoint", "teacher")):
            assert refused(capsys, "fit", "-c", config_of(name), *options) == (
                f"{key}: no checkpoint at {last(before)}: run `frugal fit -c {config_of(before)}` first, or "
                "`frugal steps` with your config, which trains all that it starts from"
            )
    assert not Path("runs").exists()


def test_a_resumed_step_needs_its_teacher_and_no_more_its_predecessor(done, capsys):
    shutil.rmtree("runs/small/one_expert")
    before = torch.load(last("experts"), weights_only=True)
    again = ["fit", "-c", config_of("experts"), "--trainer.max_epochs", "2", "--ckpt_path"]
    frugal.main([*again, "last"])
    after = torch.load(last("experts"), weights_only=True)
    assert (before["global_step"], after["global_step"]) == (3, 6)
    assert "train/teacher_top1" in Path("runs/small/experts/seed0/metrics.csv").read_text()
    for name, tensor in after["state_dict"].items():
        if tensor.ndim == 5:  # trained on, and no copies of one
            assert not torch.equal(tensor, before["state_dict"][name])
            assert not torch.equal(tensor[0], tensor[1])
    shutil.rmtree("runs/small/fp")
    kept = files()
    again[4] = "3"
    line = refused(capsys, *again, "last")
    assert line.startswith(f"checkpoint: no checkpoint at {last('fp')}: run `frugal fit -c {config_of('fp')}` first")
    line = refused(capsys, "fit", "-c", config_of("experts"))  # anew it needs both
    assert f"no checkpoint at {last('one_expert')}" in line or f"no checkpoint at {last('fp')}" in line
    assert files() == kept
    frugal.main(["test", "-c", config_of("experts")])  # nothing is taught there


def test_wrong_orders_are_refused_before_anything_is_touched(done, capsys):
    kept = files()
    for name, before, message in [
        ("binary", "fp", "of step 'fp': step 'binary' of a network with 3 experts starts from 'experts' or 'binary'"),
        ("experts", "teacher", "of Classifier: step 'experts' of a network with 3 experts starts from 'one_expert' or"),
    ]:
        line = refused(capsys, "fit", "-c", config_of(name), "--model.initial_checkpoint", config_of(before))
        assert line.startswith(f"{last(before)} is {message}")
    assert files() == kept


def test_a_checkpoint_of_another_step_is_neither_tested_nor_resumed(done, capsys):
    other = last("experts")
    for command in ("test", "fit"):
        line = refused(capsys, command, "-c", config_of("binary"), "--ckpt_path", other)
        assert line.startswith(f"{other}: the checkpoint was trained with step=experts, this model has binary; give")


def test_each_seed_starts_from_the_same_seed_and_overlays_hold_for_all(fresh, capsys):
    overlay = Path("configs/still.yaml")
    overlay.write_text("model.init_args.optimizer.init_args.lr: 0.0\n")
    options = ["-c", config_of("after_alone"), "-c", str(overlay), "--seeds", "0,1", "--trainer.limit_train_batches=2"]
    frugal.main(["steps", *options])
    assert [(call[0], call[2], call[4], call[call.index("--seed_everything") + 1]) for call in fresh.calls] == [
        (command, config_of(name), str(overlay), seed)
        for name in ("alone", "after_alone")
        for seed in ("0", "1")
        for command in ("fit", "test")
    ]
    assert all("--trainer.limit_train_batches=2" in call for call in fresh.calls)
    parameters = {}
    for seed in (0, 1):
        for name in ("alone", "after_alone"):
            checkpoint = torch.load(last(name, seed), weights_only=True)
            assert checkpoint["global_step"] == 2
            state = checkpoint["state_dict"]
            parameters[name, seed] = {key: value for key, value in state.items() if key.endswith(("weight", "scale"))}
        assert same(parameters["alone", seed], parameters["after_alone", seed])  # with a rate of 0 they stay there
    assert not same(parameters["alone", 0], parameters["alone", 1])
    table = rows(capsys.readouterr().out)
    for name in ("alone", "after_alone"):
        result = json.loads(Path(f"results/small/{name}.json").read_text())
        assert (result["seeds"], result["overlays"]) == ([0, 1], ["configs/still.yaml"])
        top1 = result["metrics"]["test/top1"]
        assert table[config_of(name)]["test/top1"] == f"{top1['mean']:.4f} ± {top1['standard_error']:.4f}"


def test_overlays_and_options_say_what_a_config_starts_from(fresh, capsys, monkeypatch):
    called = []
    monkeypatch.setattr(seeds, "process", lambda *arguments: called.append(arguments) or 143)
    write("anew", "model.init_args.initial_checkpoint: null\n")
    for options in (["-c", config_of("anew")], ["--model.initial_checkpoint", "null"]):
        with pytest.raises(SystemExit, match="143"):
            frugal.main(["steps", "-c", config_of("after_alone"), *options])
        assert called.pop()[:3] == ("fit", "-c", config_of("after_alone"))
        assert f"step 1 of 1: {config_of('after_alone')}" in capsys.readouterr().out


def test_references_are_yaml_files_in_arguments_that_end_in_checkpoint(fresh):
    found = list(references.references(parse(["-c", CHAIN[3]])))
    assert [(reference.key, reference.config) for reference in found] == [
        ("initial_checkpoint", CHAIN[2]),
        ("checkpoint", CHAIN[1]),
    ]
    assert list(references.references(parse(["-c", config_of("alone")]))) == []
    weights = parse(["-c", config_of("alone"), "--model.initial_checkpoint", "weights.safetensors"])
    assert list(references.references(weights)) == []
    single = ["--trainer.callbacks", "callbacks.Distillation", "--trainer.callbacks.checkpoint", "of/a.yml"]
    found = list(references.references(parse(["-c", config_of("alone"), *single])))
    assert [(reference.key, reference.config) for reference in found] == [("checkpoint", "of/a.yml")]
    for seed, name in ((3, "seed3"), (False, "unseeded")):
        assert references.checkpoint_of(CHAIN[1], seed) == Path(f"runs/small/fp/{name}/checkpoints/last.ckpt")


def test_only_what_is_read_need_be_there(fresh):
    def resolved(**options):
        config = parse(["-c", CHAIN[3]])
        references.resolve(config, 2, **options)
        return config.model.init_args.initial_checkpoint, config.trainer.callbacks[0].init_args.checkpoint

    paths = (str(last("one_expert", 2)), str(last("fp", 2)))
    assert resolved(needs=False, starts=False) == paths
    with pytest.raises(InputError, match=r"^initial_checkpoint: no checkpoint at .*one_expert/seed2"):
        resolved(needs=True, starts=True)
    with pytest.raises(InputError, match=r"^checkpoint: no checkpoint at .*fp/seed2"):
        resolved(needs=True, starts=False)
    last("fp", 2).parent.mkdir(parents=True)
    last("fp", 2).touch()
    assert resolved(needs=True, starts=False) == paths
