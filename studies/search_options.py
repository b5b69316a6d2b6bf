"""What `frugal search` takes: the search, where its trials run, and the recipe of a trial."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

import yaml
from jsonargparse import Namespace
from pytorch_lightning import Trainer
from pytorch_lightning.cli import LightningArgumentParser

from callbacks import FiniteLoss, WandbSummary
from commands.hardware import trainer_errors
from commands.train import FrugalCLI
from networks import InputError
from networks.errors import check_choice
from networks.rexnet.space import BUDGETS, PUBLISHED, Around, Budget, sample

DESCRIPTION = """\
Draw lists of channels within a budget, train each with every seed, rank them by mean accuracy, and show what the best,
middle and worst tenths look like: runs/<path of the config>/widths.png, and results/<path of the config>.json with
every trial. Given again after an interruption, the same command goes on where it was; what is trained is not trained
again. A trial runs on each core, or four on each GPU (--ray.gpus); --ray.address uses a Ray cluster. Any option of
`frugal fit` may follow, for the recipe of a trial."""
USAGE = "frugal search -c CONFIG [-c OVERLAY ...] [--search.ARGUMENT VALUE] [--ray.ARGUMENT VALUE] [options of fit]"
NETWORK = "channel_search_net"
# What the trials of a study need not have in common: where data are, how fast they come, who listens.
FREE = {
    "data": ("root", "num_workers", "check_integrity"),
    "trainer": ("accelerator", "devices", "logger", "default_root_dir", "enable_progress_bar", "log_every_n_steps"),
}


@dataclass
class Search:
    """What is searched.

    Args:
        budget: a, b, c or d of the paper's Table 1; 5_blocks_30m, 5_blocks_50m, 5_blocks_70m, 9_blocks_100m,
            9_blocks_150m or 9_blocks_200m of its discussion, which leave parameters free; or numbers of your own, such
            as {blocks: 5, flops: 30e6, params: 0.2e6}.
        candidates: lists that are drawn. (How many the paper drew is not known; its plot shows about 200.)
        published: train the best and the worst list that the paper prints for the budget, too.
        lists: more lists to train, within the budget or not.
        seeds: of each list; it is ranked by its mean accuracy.
        mode: "faithful" trains every list with every seed; "fast" trains with the first seed, and with the others those
            lists that are in a tenth that is compared, or within half a tenth of one.
        draw_seed: of the lists that are drawn.

    Raises:
        InputError: an unknown budget or mode, seeds twice or none, negative numbers, a budget that has such.
    """

    budget: str | Budget = "a"
    candidates: int = 200
    published: bool = True
    lists: list[list[int]] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    mode: Literal["faithful", "fast"] = "faithful"
    draw_seed: int = 0

    def __post_init__(self) -> None:
        check_choice("search.mode", self.mode, Literal["faithful", "fast"])
        if isinstance(self.budget, str) and self.budget not in BUDGETS:
            raise InputError(f"search.budget={self.budget!r} is none of {', '.join(BUDGETS)}: give one, or numbers")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"search.seeds={self.seeds} must be different numbers, and at least one")
        if self.candidates < 0 or not all(0 <= seed < 2**32 for seed in (self.draw_seed, *self.seeds)):
            raise InputError(
                f"search.candidates={self.candidates} must not be negative, and draw_seed={self.draw_seed} and "
                f"seeds={self.seeds} lie in 0 to 2**32 - 1"
            )
        self.limits.check()

    @property
    def name(self) -> str:
        """Of a budget that has one."""
        return self.budget if isinstance(self.budget, str) else ""

    @property
    def limits(self) -> Budget:
        return BUDGETS[self.budget] if isinstance(self.budget, str) else self.budget

    def channel_lists(self, around: Around) -> list[tuple[int, ...]]:
        """Those to train, each once: the published ones, the user's, and the drawn ones.

        Raises:
            InputError: there is none, too few meet the budget, one decreases or has another number of blocks.
        """
        printed = PUBLISHED.get(self.name, {}).values() if self.published else ()
        lists = [channels for channels, _ in printed] + [tuple(channels) for channels in self.lists]
        for channels in lists:
            if list(channels) != sorted(channels) or len(channels) != self.limits.blocks or channels[0] < 1:
                raise InputError(
                    f"search.lists has {list(channels)}: it takes {self.limits.blocks} channels, positive, that do not "
                    "decrease"
                )
        if self.candidates:
            lists += map(tuple, sample(self.limits, self.candidates, self.draw_seed, around).tolist())
        if not lists:
            raise InputError("there is no list to train: give search.candidates, or search.lists")
        return list(dict.fromkeys(lists))


@dataclass
class Pool:
    """Where trials run.

    Args:
        address: of a Ray cluster, HOST:PORT or ray://HOST:PORT; its machines have this folder and the data at the same
            paths. None starts Ray on this machine.
        workers: trials at once; None for as many as cores and GPUs give.
        cpus: cores of a trial, which computes with so many threads.
        gpus: share of a GPU that a trial takes; None is 0.25 where there are GPUs, and 0 where there are none.

    Raises:
        InputError: numbers that are not positive, more than one GPU for a trial.
    """

    address: str | None = None
    workers: int | None = None
    cpus: int = 1
    gpus: float | None = None

    def __post_init__(self) -> None:
        gpus = self.gpus or 0.0
        if self.cpus < 1 or (self.workers is not None and self.workers < 1) or not 0 <= gpus < float("inf"):
            raise InputError(f"ray.cpus={self.cpus}, ray.workers={self.workers}, ray.gpus={self.gpus}: too few")
        if gpus > 1:
            raise InputError(f"ray.gpus={self.gpus}: a trial computes on one GPU, or on a share of it")


class SearchCLI(FrugalCLI):
    """Builds a trial from the options of a search.

    Args:
        arguments: of `frugal search`, and in a worker those of the trial.
        channels: of the network; None builds one of any channels, to read the options and the data.
        logger: arguments that a logger gets in this trial.
    """

    def __init__(
        self, arguments: list[str], channels: tuple[int, ...] | None = None, logger: dict | None = None
    ) -> None:
        self.channels, self.logger_args = channels, logger or {}
        super().__init__(arguments, run=False)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.usage, parser.description = USAGE, DESCRIPTION
        parser.add_class_arguments(Search, "search")
        parser.add_class_arguments(Pool, "ray")
        groups: Any = parser._action_groups
        groups[2:2] = [groups.pop(), groups.pop()][::-1]  # --help shows these two first
        parser.set_defaults({"model": {"class_path": "lightning_modules.ReXNet", "init_args": {"network": NETWORK}}})

    def before_instantiate_classes(self) -> None:
        super().before_instantiate_classes()
        self._refuse_what_is_chosen()
        self.recipe = _recipe(yaml.safe_load(self.parser.dump(self.config, skip_none=True)))
        init_args = self.config.model.init_args
        if init_args.get("network") != NETWORK or "channels" in (init_args.network_args or {}):
            raise InputError(f"a search trains {NETWORK}, whose channels it chooses: leave model.network and those out")
        self.network_args = init_args.network_args or {}
        budget = self.config.search.budget
        blocks = BUDGETS.get(budget, BUDGETS["a"]) if isinstance(budget, str) else budget  # Search refuses others
        init_args.network_args = {**self.network_args, "channels": list(self.channels or (16,) * blocks.blocks)}
        if self.config.trainer.logger in (None, True):
            self.config.trainer.logger = False  # a trial's curve is in its record
        for logger in _listed(self.config.trainer.logger):
            known = {name: value for name, value in self.logger_args.items() if name in logger.init_args}
            logger.init_args.update(Namespace(known))

    def _refuse_what_is_chosen(self) -> None:
        trainer = self.config.trainer
        if self.channels is None:  # not in a worker, which gets them
            if self.config.seed_everything != 0:
                raise InputError("seed_everything is chosen for each trial: leave it out, and see --search.seeds")
            if trainer.default_root_dir is not None:
                raise InputError("trainer.default_root_dir is chosen for each trial: leave it out")
        if trainer.fast_dev_run or trainer.limit_test_batches == 0:
            raise InputError("a trial is ranked by its test/top1: leave fast_dev_run and limit_test_batches 0 out")

    @property
    def around(self) -> Around:
        """What stands around the searched blocks."""
        given = {f.name for f in fields(Around)} & self.network_args.keys()
        in_chans, side = self.datamodule.input_size[0], self.datamodule.input_size[-1]
        return Around(**{name: self.network_args[name] for name in given}, in_chans=in_chans, side=side)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """One that trains a trial: no files, no bars, one device."""
        options = {**self.config_init["trainer"]}
        options.update(
            callbacks=[FiniteLoss(), WandbSummary(), *_listed(options["callbacks"])],
            devices=1,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        with trainer_errors():
            return Trainer(**options)


def _listed(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [given] if given else []


def _recipe(config: dict[str, Any]) -> dict[str, Any]:
    """What makes a trial, but for its list and seed."""
    data = config["data"].get("init_args", {})
    return {
        "model": config["model"],
        "data": {
            "class_path": config["data"]["class_path"],
            **{name: value for name, value in data.items() if name not in FREE["data"]},
        },
        "trainer": {name: value for name, value in config["trainer"].items() if name not in FREE["trainer"]},
    }
