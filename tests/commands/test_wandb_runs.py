"""What Weights & Biases gets of runs of all methods, read back from what they record offline.

Names are those of docs/dashboards.md, and the panels of the dashboard read no others.
"""

import csv
import json
import re
import struct
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
import torch
import wandb
import wandb_workspaces.reports.v2 as wr
import yaml
from wandb.proto import wandb_internal_pb2

import frugal
import networks
from commands import dashboard_layout

ROOT = Path(__file__).parents[2]
WANDB = ("logger=WandbLogger", "logger.project=digits", "logger.offline=true")
SHORT = ("max_epochs=2", "limit_train_batches=2", "limit_val_batches=1", "limit_test_batches=1", "log_every_n_steps=1")
ARGS = yaml.safe_load((ROOT / "configs/expert_binary/digits/fp.yaml").read_text())["model"]["init_args"]["network_args"]
TAUGHT = """\
model: {init_args: {initial_checkpoint: null, warmup_epochs: 0}}
trainer:
  callbacks:
    - class_path: callbacks.Distillation
      init_args: {teacher: expert_binary_resnet, teacher_args: %s, checkpoint: teacher.pt, validate: true}
    - class_path: callbacks.TemperatureAnnealing
      init_args: {start: 1.0, end: 0.5, schedule: linear}
    - class_path: callbacks.TemperatureAnnealing
      init_args: {interval: step}
"""
RUNS = {
    "Biprop": ("-c", "configs/biprop/digits/conv2_mpt1_32.yaml"),
    "ExpertBinary": ("-c", "configs/expert_binary/digits/experts.yaml", "-c", "taught.yaml"),
    "Epitome": ("-c", "configs/epitome/digits/conv2.yaml"),
    "ReXNet": (
        "--model", "ReXNet", "--model.network", "channel_search_net", "--trainer.callbacks+=callbacks.NuclearNorm",
        "--model.network_args", "{stem: 8, first: 8, penultimate: 64, channels: [8, 16, 24]}",
    ),
}  # fmt: skip
FOLDERS = {
    "Biprop": "runs/biprop/digits/conv2_mpt1_32/seed0",
    "ExpertBinary": "runs/expert_binary/digits/experts/seed0",
    "Epitome": "runs/epitome/digits/conv2/seed0",
    "ReXNet": "runs/unnamed/seed0",
}


class Offline:
    """What W&B's file of a run has: LevelDB's log of protocol buffers, in blocks of 32 KiB behind a head of 7 bytes."""

    def __init__(self, path):
        self.files = path.parent / "files"
        self.rows, self.rules, self.config, self.summary = [], [], {}, defaultdict(dict)
        for record in self._records(path.read_bytes()):
            kind = record.WhichOneof("record_type")
            part = getattr(record, kind)
            if kind in ("run", "environment") and part.HasField("git"):  # where it is depends on W&B's version
                self.commit = part.git.commit
            if kind == "run":
                self.run = part
            elif kind == "metric":
                self.rules.append(part)
            elif kind == "config":
                self.config.update({item.key: json.loads(item.value_json) for item in part.update if item.key})
            elif kind == "history":
                row = {tuple(item.nested_key) or (item.key,): json.loads(item.value_json) for item in part.item}
                self.rows.append({key: value for key, value in row.items() if not key[0].startswith("_")})
            elif kind == "summary":
                for item in part.update:
                    name, *rest = item.nested_key or [item.key]
                    if not name.startswith("_"):
                        self.summary[name][tuple(rest)] = json.loads(item.value_json)
        self.names = {key[0] for row in self.rows for key in row} | self.summary.keys()

    @staticmethod
    def _records(data):
        place, parts = 7, b""
        while place + 7 <= len(data):
            if 32768 - place % 32768 < 7:  # no room for a head
                place += 32768 - place % 32768
                continue
            _, length, kind = struct.unpack_from("<IHB", data, place)
            parts += data[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):  # whole, or the last part
                yield wandb_internal_pb2.Record.FromString(parts)
                parts = b""

    def value(self, name):
        """Of the summary."""
        return self.summary[name][()]

    def curve(self, name):
        """(epoch, value) of each row that has the metric."""
        return [(row[("epoch",)], row[(name,)]) for row in self.rows if (name,) in row]

    def table(self, name):
        """Columns and rows of a table, and what the record says of their numbers."""
        entry = self.summary[name]
        content = json.loads((self.files / entry[("path",)]).read_text())
        return content["columns"], content["data"], (entry[("nrows",)], entry[("ncols",)])


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A clone, in git, with the runs of all four methods: fitted, then tested."""
    here = tmp_path_factory.mktemp("clone")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setenv("WANDB_MODE", "offline")  # restored, for Lightning sets it
        (here / "configs").symlink_to(ROOT / "configs")
        for command in (("init", "-q"), ("add", "configs"), ("commit", "-qm", "configs")):
            subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *command], check=True)
        teacher = networks.create("expert_binary_resnet", (1, 8, 8), 10, ARGS)
        torch.save(teacher.state_dict(), "teacher.pt")
        Path("taught.yaml").write_text(TAUGHT % json.dumps(ARGS))
        for options in RUNS.values():
            for command in ("fit", "test"):
                given = [f"--trainer.{option}" for option in (*SHORT, *WANDB, "enable_progress_bar=false")]
                frugal.main([command, *options, *given])
                wandb.finish()
        yield here


@pytest.fixture(scope="module")
def fits(here):
    return {name: Offline(*(here / folder).glob("wandb/offline-run-*/*.wandb")) for name, folder in FOLDERS.items()}


@pytest.fixture(scope="module")
def tests(here):
    return {
        name: Offline(*(here / folder).glob("test/wandb/offline-run-*/*.wandb")) for name, folder in FOLDERS.items()
    }


def documented():
    """Names of docs/dashboards.md, as regular expressions, and of which runs they are."""
    text = (ROOT / "docs/dashboards.md").read_text()
    rows = re.findall(r"^\| `(\S+)` \| .* \| (.*) \|$", text, re.MULTILINE)
    assert len(rows) == len(dict(rows)) > 40
    return {re.sub(r"<i>", r"\\d+", re.sub(r"<(layer|name|part)>", ".+", name)): runs for name, runs in rows}


def test_names_are_the_documented_ones(fits, tests):
    seen = {name for run in (*fits.values(), *tests.values()) for name in run.names}
    patterns = documented()
    assert {name for name in seen if not any(re.fullmatch(pattern, name) for pattern in patterns)} == set()
    unseen = {pattern for pattern in patterns if not any(re.fullmatch(pattern, name) for name in seen)}
    assert {pattern for pattern in unseen if patterns[pattern] != "detectors"} == set()


def test_curves_go_by_epoch(fits):
    for name, run in fits.items():
        rules = {rule.name or rule.glob_name: rule for rule in run.rules}  # the last one counts
        assert rules["*"].step_metric == "epoch"
        by_step = {name for name, rule in rules.items() if rule.step_metric == "trainer/global_step"}
        assert by_step == {"train/loss_step", "train/temperature_step"}
        assert {key for key in rules if key.endswith("*")} == {"*"}  # of others that fit too, any could be taken
        assert all(("epoch",) in row for row in run.rows)
        for metric in ("train/loss", "train/top1", "val/loss", "val/top1", "lr/group_0"):
            assert [epoch for epoch, _ in run.curve(metric)] == [0, 1]
        assert [epoch for epoch, _ in run.curve("train/loss_step")] == [0, 0, 1, 1]
        layers = {name for name in run.names if re.fullmatch(r"layers/.*/.*", name)}
        assert all([epoch for epoch, _ in run.curve(metric)] == [0, 1] for metric in layers)
        assert bool(layers) == (name != "ReXNet")
        first, second = (rate for _, rate in run.curve("lr/group_0"))
        assert second == pytest.approx(first / 2)  # cosine over two epochs


def test_summary(here, fits, tests):
    for name, run in fits.items():
        tested = tests[name]
        curve = dict(run.curve("val/top1"))
        best = max(curve.values())
        assert run.value("val/best_top1") == best
        assert run.value("val/best_epoch") == min(epoch for epoch, value in curve.items() if value == best)
        with open(here / FOLDERS[name] / "cost.csv", newline="") as file:
            layers = list(csv.DictReader(file))
        costs = {
            key.removeprefix("cost/"): run.value(key)
            for key in run.names
            if key.startswith("cost/") and key != "cost/layers"
        }
        assert costs == {key: sum(int(layer[key]) for layer in layers) for key in costs}
        assert {"params", "flops", "bops", "size_bits"} <= costs.keys()
        assert not [row for row in run.rows if any(key[0].startswith("cost/") and len(key) == 1 for key in row)]
        metrics = json.loads((here / FOLDERS[name] / "test/metrics.json").read_text())
        assert {key: tested.value(key) for key in tested.names if key.startswith("test/")} == metrics
        assert run.value("epoch") == 1
        assert not {"epoch", "trainer/global_step"} & tested.summary.keys()  # else the run would be back at its start


def test_tables(here, fits):
    for name, run in fits.items():
        with open(here / FOLDERS[name] / "cost.csv", newline="") as file:
            columns, *rows = csv.reader(file)
        found, data, size = run.table("cost/layers")
        assert found == columns
        assert [["" if value is None else str(value) for value in row] for row in data] == rows
        assert size == (len(rows), len(columns))
        if name == "ReXNet":  # it has no layers of a kind of its own
            continue
        columns, rows, size = run.table("layers/final")
        expected = defaultdict(dict)
        for key in run.names:
            if layer := re.fullmatch(r"layers/([^/]+)/(.+)", key):
                expected[layer[2]][layer[1]] = run.value(key)
        assert {row[0]: dict(zip(columns[1:], row[1:], strict=True)) for row in rows} == {
            layer: {measure: values.get(measure) for measure in columns[1:]} for layer, values in expected.items()
        }
        assert size == (len(rows), len(columns))


def test_config(fits, tests):
    for name, run in fits.items():
        config = run.config
        assert (config["method"], config["data"], config["seed"]) == (name, "Digits", 0)
        assert config["commit"] == config["run"]["commit"]
        assert config["resolved"]["trainer"]["max_epochs"] == 2
        assert not {"resolved", "run", "commit"} & tests[name].config.keys()  # those of the fit stay
        assert {"resolved", "run"} == tests[name].config["test"].keys()
    own = {
        "Biprop": {"network": "conv2", "keep_fraction": 0.5},
        "ExpertBinary": {"network": "expert_binary_resnet", "num_experts": 4, "temperature": 1.0, "step": "experts"},
        "Epitome": {"network": "conv2", "rules": 0.25},
        "ReXNet": {"network": "channel_search_net"},
    }
    for name, values in own.items():
        assert {key: fits[name].config[key] for key in values} == values


def test_a_run_is_named_where_it_begins_and_a_test_goes_on_in_it(here, fits, tests):
    named = {name: (run.run.run_group, run.run.job_type, list(run.run.tags)) for name, run in fits.items()}
    assert named == {
        "Biprop": ("biprop/digits/conv2_mpt1_32", "fit", ["biprop", "digits"]),
        "ExpertBinary": ("expert_binary/digits/experts", "fit", ["expert_binary", "digits"]),
        "Epitome": ("epitome/digits/conv2", "fit", ["epitome", "digits"]),
        "ReXNet": ("", "fit", []),
    }
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
    for name, run in tests.items():
        assert run.run.run_id == fits[name].run.run_id
        assert (run.run.run_group, run.run.job_type, list(run.run.tags)) == ("", "", [])
        assert fits[name].commit == run.commit == head.stdout.strip()


def read_by(panel):
    """Regular expressions of the metrics that a panel reads, and whether from the summary."""
    if isinstance(panel, wr.LinePlot):
        names = [re.escape(name) for name in (*panel.y, panel.x)]
        return [*names, *([panel.metric_regex] if panel.metric_regex else [])], False
    if isinstance(panel, wr.ScatterPlot):
        return [re.escape(panel.x.name), re.escape(panel.y.name)], True
    if isinstance(panel, wr.BarPlot):
        return [re.escape(name) for name in panel.metrics], True
    if isinstance(panel, wr.WeavePanelSummaryTable):
        return [re.escape(panel.table_name)], True
    if isinstance(panel, wr.MediaBrowser):
        return [re.escape(name) for name in panel.media_keys], False
    assert isinstance(panel, wr.RunComparer)
    return [], False


def test_every_metric_of_a_panel_is_logged(fits, tests):
    runs = [*fits.values(), *tests.values()]
    logged = {key[0] for run in runs for row in run.rows for key in row}
    summary = {name for run in runs for name in run.summary}
    groups = list(dashboard_layout.groups())
    for group in groups:
        for panel in group.panels:
            patterns, of_summary = read_by(panel)
            for pattern in patterns:
                assert any(re.fullmatch(pattern, name) for name in (summary if of_summary else logged)), pattern
    assert {group.name for group in groups} == {re.match(r"\w+", name)[0] for name in logged} - {"epoch", "trainer"} | {
        "runs"
    }
    config = {name for run in runs for name in run.config}
    for column in dashboard_layout.COLUMNS:
        assert re.fullmatch(r"config:(\w+)\.value", column)[1] in config
    assert set(dashboard_layout.FIGURES) <= summary


def test_every_measure_of_layers_has_a_panel(fits):
    measures = {
        name.split("/")[1] for run in fits.values() for name in run.names if re.fullmatch(r"layers/.+/.+", name)
    }
    assert {name for name in measures if not any(re.fullmatch(p, name) for p in dashboard_layout.LAYERS)} == set()
