"""Configs that are none, that say what nothing takes, or that belong to another command."""

import pytest

MODEL = "model: {class_path: Biprop, init_args: {network: conv2}}\n"

# name: (what the file has, words of the line)
FILES = {
    "empty": ("", "bad.yaml is no config: it has no `key: value`, such as `model: ...`"),
    "text": ("hello\n", "bad.yaml is no config: it has no `key: value`"),
    "a list": ("- model\n- data\n", "bad.yaml is no config: it has no `key: value`"),
    "no YAML": ("model: [\n", "bad.yaml is no config: it is no YAML", "'<stream end>', line 2"),
    "tabs": ("model:\n\tclass_path: Biprop\n", "bad.yaml is no config: it is no YAML", "'\\t'", "line 2"),
    "a picture": (b"\x89PNG\r\n\x1a\n\xff\xfe", "bad.yaml is no config: -c takes YAML files, and this is none"),
    "unknown key": (MODEL + "trainer: {max_epoch: 3}\n", "trainer.max_epoch", "did you mean max_epochs?"),
    "unknown section": (MODEL + "trianer: {max_epochs: 3}\n", "trianer.max_epochs", "did you mean trainer?"),
    "misspelt class": ("model: {class_path: lightning_modules.Bipro}\n", "'Bipro'", "did you mean Biprop?"),
    "misspelt module": ("model: lightning_module.Biprop\n", "'lightning_module'", "did you mean lightning_modules?"),
    "misspelt short class": ("model: Bipro\n", "Bipro", "did you mean Biprop?"),
    "no class": ("model: 7\n", "model: Not a valid subclass of LightningModule"),
    "another kind of class": ("model: datamodules.Digits\n", "model: ", "LightningModule"),
    "misspelt argument": (MODEL.replace("network", "netwrok"), "'netwrok' is not accepted", "did you mean network?"),
    "wrong type": (MODEL + "data: {class_path: Digits, init_args: {batch_size: many}}\n", "data.batch_size", "a int"),
    "include of a missing file": ("config: nowhere.yaml\n", "File does not exist", "nowhere.yaml"),
    "include of no config": ("config: hello.yaml\n", "hello.yaml is no config"),
    "include of itself": ("config: bad.yaml\n", "Config file loop detected: bad.yaml -> bad.yaml"),
    "circular include": ("config: circle.yaml\n", "loop detected: bad.yaml -> circle.yaml -> bad.yaml"),
    "a search": ("search: {candidates: 2}\n", "'search.candidates': it is one of frugal search"),
    "a rank study": ("study: {networks: 2}\n", "'study.networks': it is one of frugal rank"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_config_of_fit(name, here, refuse):
    content, *words = FILES[name]
    (here / "hello.yaml").write_text("hello")
    (here / "circle.yaml").write_text("config: bad.yaml\n")
    (here / "bad.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    refuse("fit -c small.yaml -c bad.yaml", 2, *words)


COMMANDS = [
    ("fti -c small.yaml", 2, "no command 'fti'; did you mean fit?"),
    ("learn -c small.yaml", 2, "no command 'learn'; frugal --help lists them"),
    ("fit", 2, "required: fit.model: give a config, -c CONFIG"),
    ("fit -c smal.yaml", 2, "config: File does not exist", "smal.yaml"),
    ("fit -c runs", 2, "config: Path is not a file", "runs"),
    ("test -c runs/small/seed0/checkpoints/last.ckpt", 2, "last.ckpt is no config: -c takes YAML files"),
    ("count -c ticket.safetensors", 2, "ticket.safetensors is no config: -c takes YAML files"),
    ("count -c nowhere.yaml", 2, "File does not exist", "nowhere.yaml"),
    ("seeds -c nowhere.yaml", 2, "File does not exist", "nowhere.yaml"),
    ("cross-validate -c nowhere.yaml", 2, "File does not exist", "nowhere.yaml"),
    ("steps -c nowhere.yaml", 1, "no config at nowhere.yaml"),
    ("rank -c nowhere.yaml", 2, "File does not exist", "nowhere.yaml"),
    ("search -c nowhere.yaml", 2, "File does not exist", "nowhere.yaml"),
    ("rank", 1, "give a config with -c"),
    ("search", 1, "give a config with -c"),
    ("rank -c small.yaml", 2, "'model.init_args.network_args.width' is not accepted: it is one of frugal fit"),
    ("search -c small.yaml", 1, "a search trains channel_search_net", "leave model.network and those out"),
    ("fit -c small.yaml --model.keep_fractoin 0.5", 2, "keep_fractoin", "did you mean keep_fraction?"),
    ("fit -c small.yaml --trainer.max_epoch 1", 2, "trainer.max_epoch 1; did you mean max_epochs?"),
    ("fit -c small.yaml --weights_only false", 2, "unrecognized arguments: --weights_only"),
    ("fit -c small.yaml --trainer.callbacks+=callbacks.Distilation", 2, "Distilation"),
]


@pytest.mark.parametrize("case", COMMANDS, ids=lambda case: case[0])
def test_commands_and_options_that_are_none(case, refuse):
    refuse(*case)


def test_null_on_the_command_line_is_none_inside_of_a_networks_arguments_too():
    from commands.train import parse

    given = ["--model.network_args.x", "null", "--model.network_args.y", "{z: [null, 1, 'a']}"]
    config = parse(["--model", "Biprop", "--model.network", "conv2", *given])
    assert config.model.init_args.network_args == {"x": None, "y": {"z": [None, 1, "a"]}}
