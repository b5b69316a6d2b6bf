"""Arguments of one class never reach another by accident."""

import pytest
import torch
from torch import nn

from commands.parser import Parser, classes_first, try_int_first
from commands.train import FrugalCLI
from datamodules import CIFAR, Digits
from lightning_modules import Biprop, Classifier

MODEL = ["--model", "Biprop", "--model.network", "conv2"]


def build(*arguments):
    cli = FrugalCLI([*MODEL, *arguments], run=False)
    optimizer = cli.model.optimizer([nn.Parameter(torch.zeros(1))])
    return cli, optimizer, optimizer.param_groups[0]


def test_the_defaults_are_the_recipes():
    cli, optimizer, settings = build()
    assert type(cli.model) is Biprop
    assert type(cli.datamodule) is Digits
    assert cli.datamodule.batch_size == 32
    assert type(optimizer) is torch.optim.SGD
    assert (settings["lr"], settings["momentum"], settings["weight_decay"]) == (0.1, 0.9, 1e-4)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "RMSprop"])
def test_another_optimizer_has_its_own_defaults(name):
    _, optimizer, settings = build("--model.optimizer", f"torch.optim.{name}")
    expected = getattr(torch.optim, name)([nn.Parameter(torch.zeros(1))]).param_groups[0]
    assert type(optimizer) is getattr(torch.optim, name)
    assert {k: v for k, v in settings.items() if k != "params"} == {k: v for k, v in expected.items() if k != "params"}


def test_single_arguments_of_the_default_can_be_given():
    assert build("--model.optimizer.lr", "0.05")[2]["lr"] == 0.05
    assert build("--model.optimizer.lr", "0.05")[2]["momentum"] == 0.9
    assert build("--data.batch_size", "64")[0].datamodule.batch_size == 64
    assert build("--data.batch_size", "64", "--data", "Digits")[0].datamodule.batch_size == 64


def test_other_data_have_their_own_defaults():
    assert build("--data", "CIFAR")[0].datamodule.batch_size == 128
    assert type(build("--data", "CIFAR")[0].datamodule) is CIFAR


@pytest.mark.parametrize("data", [["--data", "CIFAR"], ["--data=CIFAR"]])
def test_a_class_keeps_its_arguments_wherever_it_is_named(data):
    assert build(*data, "--data.batch_size", "64")[0].datamodule.batch_size == 64
    assert build("--data.batch_size", "64", *data)[0].datamodule.batch_size == 64
    _, optimizer, settings = build("--model.optimizer.lr=0.5", *data, "--model.optimizer", "Adam")
    assert type(optimizer) is torch.optim.Adam
    assert settings["lr"] == 0.5


def test_the_order_of_the_command_line_is_else_kept():
    given = ["fit", "-c", "a", "--x.y", "-1", "--x.y=2", "--x", "A", "--z", "--x.z", "3", "--xs", "B", "-c", "b"]
    assert classes_first(given) == [*given[:3], "--x", "A", "--x.y", "-1", "--x.y=2", *given[8:]]


def test_a_config_laid_over_another(tmp_path):
    (tmp_path / "one.yaml").write_text("model.init_args.optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.3}}")
    (tmp_path / "two.yaml").write_text("model: {init_args: {optimizer: {class_path: torch.optim.Adam}}}")
    _, optimizer, settings = build("-c", str(tmp_path / "one.yaml"), "-c", str(tmp_path / "two.yaml"))
    assert type(optimizer) is torch.optim.Adam
    assert (settings["lr"], settings["weight_decay"]) == (1e-3, 0)


def test_a_subclass_keeps_what_its_parent_was_given():
    cli, _, settings = build("--model.optimizer.lr", "0.05", "--model", "Classifier")
    assert type(cli.model) is Classifier
    assert cli.model.hparams["network"] == "conv2"
    assert settings["lr"] == 0.05


RULES = ["--model", "Epitome", "--model.network", "conv2", "--model.rules"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([*RULES, "[{patern: a}]"], "model.rules: Option 'patern' is not accepted"),
        ([*RULES, "[{pattern: a, share: 2}]"], "model.rules.share: Expected a Literal['out', 'in']. Got value: 2"),
        ([*RULES, "half"], "model.rules: Expected a float"),
        ([*MODEL, "--model.train_nb", "1"], "model: Option 'train_nb' is not accepted; did you mean train_bn?"),
        ([*MODEL, "--model.train_bn", "7"], "model.train_bn: Expected a bool. Got value: 7"),
        (["--model", "Bipropp"], "model: Expected a dot import path string: Bipropp; did you mean Biprop?"),
    ],
)  # fmt: skip
def test_a_mistake_gets_one_line_with_the_innermost_reason(arguments, line, capsys):
    with pytest.raises(SystemExit) as stop:
        FrugalCLI(arguments, run=False)
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"frugal: error: {line}\n"


def test_of_several_types_the_one_that_fits_is_taken():
    rules = "[{pattern: linear.0, share: in, multiplier: [0.25]}, {pattern: convs.2}]"
    assert list(FrugalCLI([*RULES, rules], run=False).model.layers) == ["convs.2", "linear.0"]


def test_one_batch_is_not_all_batches_whatever_order_typing_kept():
    parser = Parser()
    parser.add_argument("--limit", type=float | int | None)
    parser.add_argument("--words", type=str | None)
    assert type(parser.parse_args(["--limit", "1"]).limit) is float  # as after some imports
    try_int_first(parser)
    assert type(parser.parse_args(["--limit", "1"]).limit) is int
    assert type(parser.parse_args(["--limit", "1.0"]).limit) is float
    assert parser.parse_args(["--limit", "null", "--words", "a"]).as_dict() == {"limit": None, "words": "a"}


def test_the_trainer_takes_whole_numbers_first():
    trainer = FrugalCLI([*MODEL, "--trainer.limit_test_batches", "1"], run=False).config.trainer
    assert type(trainer.limit_test_batches) is int
