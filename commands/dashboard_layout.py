"""What the dashboard of a W&B project shows: panels by group of metrics, as data.

Names are those that runs log, see docs/dashboards.md.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

TITLE = "frugal: accuracy and cost"
COLUMNS = ("config:method.value", "config:data.value", "config:network.value", "config:seed.value")
FIGURES = ("val/best_top1", "val/best_epoch", "test/top1", "cost/bops", "cost/flops", "cost/size_bits")
PICTURES = ("curves", "layers", "epitomes", "features")
LAYERS = {
    "kept_fraction": "share of each layer's weights that is kept",
    "gain": "gain of each layer's signs",
    "mask_flips": "share of each layer's weights that were kept or pruned anew in the epoch",
    "weight_flips": "share of each layer's binary weights whose sign flipped in the epoch",
    "expert_entropy": "entropy of the choice of experts in each layer, in bits",
    r"expert_\d+_share": "share of samples that went to each expert of each layer",
    "offset": "mean distance of each layer's positions from plain sampling, in entries",
    "offset_max": "their largest distance, in entries",
    "coverage": "share of each layer's stored entries that are read",
}


class Group(NamedTuple):
    """A section of the workspace, and of the report."""

    name: str
    text: str
    panels: list[Any]


def groups() -> Iterator[Group]:
    """The sections, with panels of their own each time: W&B's have identities."""
    yield Group(
        "cost",
        "Accuracy against what a network costs as deployed: binary multiply-adds (BOPs), real ones (FLOPs), bits; "
        "val/best_top1 is the best of many epochs, and so a little too good, test/top1 is of the last one.",
        [
            *(
                wr.ScatterPlot(
                    title=f"{score} over {cost}",
                    x=wr.SummaryMetric(f"cost/{cost}"),
                    y=wr.SummaryMetric(score),
                    log_x=cost != "bops",  # a network without binary operations has none
                )
                for score in ("val/best_top1", "test/top1")
                for cost in ("bops", "size_bits", "flops")
            ),
            wr.WeavePanelSummaryTable(table_name="cost/layers", layout=wr.Layout(w=24, h=9)),
        ],
    )
    yield Group(
        "val",
        "What was measured on the validation data after each epoch; also the mean over the seeds of each config, with "
        "its standard error.",
        [
            curve("val/top1"),
            wr.LinePlot(
                title="val/top1, mean and standard error over the runs of a group",
                x="epoch",
                y=["val/top1"],
                groupby="Group",
                groupby_aggfunc="mean",
                groupby_rangefunc="stderr",
            ),
            curve("val/loss"),
        ],
    )
    yield Group(
        "test",
        "What `frugal test` measured, of the last epoch unless another checkpoint was given.",
        [wr.BarPlot(title=name, metrics=[name]) for name in ("test/top1", "test/loss")],
    )
    yield Group(
        "train",
        "Loss, accuracy and temperature; under a teacher its accuracy on the same images, and how often both agree.",
        [
            curve("train/loss"),
            curve("train/top1"),
            wr.LinePlot(title="train/loss_step", x="trainer/global_step", y=["train/loss_step"]),
            curve("train/temperature"),
            curve("train/teacher_top1"),
            curve("train/agreement"),
        ],
    )
    yield Group(
        "layers",
        "Layer by layer: what tickets keep, how experts are used, where epitomes are read; as a table, the last epoch.",
        [
            *(
                wr.LinePlot(title=title, x="epoch", metric_regex=f"layers/{measure}/.*")
                for measure, title in LAYERS.items()
            ),
            wr.WeavePanelSummaryTable(table_name="layers/final", layout=wr.Layout(w=24, h=9)),
        ],
    )
    yield Group(
        "lr",
        "The rate of each group of parameters with which an epoch begins.",
        [wr.LinePlot(title="learning rates", x="epoch", metric_regex="lr/.*")],
    )
    yield Group(
        "pictures",
        "Curves, maps of layers by epochs, offsets and features, as drawn into the run folder.",
        [wr.MediaBrowser(media_keys=[f"pictures/{name}" for name in PICTURES], layout=wr.Layout(w=24, h=12))],
    )
    yield Group("runs", "What differs between runs.", [wr.RunComparer(diff_only=True, layout=wr.Layout(w=24, h=12))])


def curve(name: str) -> Any:
    """A metric by epoch."""
    return wr.LinePlot(title=name, x="epoch", y=[name])


def workspace(project: str, entity: str) -> ws.Workspace:
    """A saved view of the project."""
    sections = [ws.Section(group.name, group.panels, is_open=True) for group in groups()]
    columns = [*COLUMNS, *(f"summary:{name}" for name in FIGURES)]
    runs = ws.RunsetSettings(pinned_columns=["run:displayName", *columns])
    return ws.Workspace(entity, project, TITLE, sections, ws.WorkspaceSettings(x_axis="epoch"), runs)


def report(project: str, entity: str) -> wr.Report:
    """The same panels with what there is to see in them, to be shared."""
    blocks: list[Any] = [wr.TableOfContents()]
    for group in groups():
        blocks += [wr.H1(group.name), wr.P(group.text), wr.PanelGrid(panels=group.panels)]
    return wr.Report(project, entity, TITLE, "Made by `frugal dashboard`.", blocks, width="fluid")
