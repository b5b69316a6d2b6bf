"""The papers' tables: what is printed beside what is counted, and the documents that are made of them."""

import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

import frugal
from networks import InputError, complexity
from studies import conventions, cost_pictures, documents, tables

METHODS = tables.methods()
ROWS = [
    (method, table["table"], row)
    for method in METHODS
    for table in tables.tables(method, tables.kept_costs(method))
    for row in table["rows"]
]


def costs(config):
    return json.loads((tables.RESULTS / config.split("/")[0] / "costs.json").read_text())[f"configs/{config}.yaml"]


def test_all_four_papers_are_there():
    assert METHODS == ["biprop", "epitome", "expert_binary", "rexnet"]


@pytest.mark.parametrize(
    ("blocks", "groups", "rescale", "expected"),
    [
        (1242, "4_4_8_16", False, 111_250_944),
        (1262, "4_8_8_16", False, 114_273_792),
        (1282, "4_4_8_16", False, 117_296_640),
        (1242, "4_4_8_16", True, 117_547_520),
        (1262, "4_8_8_16", True, 121_565_696),
        (1282, "4_4_8_16", True, 125_583_872),
    ],
)
def test_the_authors_tool_counts_as_the_spec_says(blocks, groups, rescale, expected):
    with torch.device("meta"):
        network = timm.create_model(f"expert_binary_deep_{blocks}_2_{groups}", step="binary", rescale=rescale)
    report = complexity.count(network, (3, 224, 224))
    assert conventions.authors_tool(network, report) == expected
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("biprop/cifar10/vgg_small_mpt1_32", {"kept_weights": 232_828}),
        ("biprop/cifar10/vgg_small_wide_mpt1_1_bn", {"kept_weights": 1_812_280}),
        ("biprop/imagenet/wrn50_mpt1_32", {"kept_weights": 13_762_830}),
        ("epitome/esc50/ws25_learned", {"convolution_weights": 542_424}),
        ("epitome/esc50/ws45", {"convolution_weights": 296_472}),
        ("epitome/esc50/dense", {"convolution_weights": 14_345_216}),
        ("expert_binary/imagenet/1262_2_4_8_8_16/binary", {"bops": 1_706_786_816, "params": 39_782_332}),
        ("rexnet/cifar100/a_best", {"params_10_classes": 198_244, "flops_normalised": 29_992_320}),
        ("rexnet/cifar100/d_best", {"params_10_classes": 3_020_290, "flops_normalised": 351_679_488}),
        ("rexnet/imagenet/rexnet_100", {"params": 4_796_873}),
    ],
)
def test_conventions_give_the_specs_figures(config, expected):
    assert {name: costs(config)[name] for name in expected} == expected


@pytest.mark.parametrize("backbone", ["rexnet_090", "rexnet_220", "resnet50"])
def test_without_masks_a_mask_rcnn_multiplies_as_a_faster_rcnn(backbone):
    masks, boxes = (costs(f"rexnet/coco/{kind}/{backbone}") for kind in ("maskrcnn", "fasterrcnn"))
    assert masks["flops_without_masks"] == boxes["flops"]


def test_what_differs_says_why():
    """By more than the rounding of a figure of two digits: a note in the row, or in one of the same table."""
    noted = {(method, table) for method, table, row in ROWS if row["note"]}
    for method, table, row in ROWS:
        far = [name for name, cost in row["costs"].items() if abs(cost["difference"] or 0) > 0.05]
        assert not far or (method, table) in noted, (method, table, row["row"])


def test_every_row_with_a_network_is_counted():
    for method, table, row in ROWS:
        if row["config"]:
            assert Path(tables.ROOT / row["config"]).is_file()
            assert all(cost["ours"] is not None for cost in row["costs"].values()), (method, table, row["row"])


@pytest.mark.parametrize("method", ["biprop", "epitome", "rexnet"])
def test_every_recipe_is_a_row_of_a_table(method):
    """But for shared bases, short runs, studies, methods combined, and what the papers name without a table."""
    folder = tables.ROOT / "configs" / method
    recipes = {path.relative_to(tables.ROOT).as_posix() for path in folder.rglob("*.yaml")}
    others = ("/base.yaml", "/short/", "/digits/", "/sweeps/", "/search/", "/rank/", "_half_hour", "_dense_adam")
    combined = ("_distilled", "epitome/imagenet/rexnet")
    rows = {row["config"] for _, _, row in ROWS}
    assert not {recipe for recipe in recipes - rows if not any(part in recipe for part in (*others, *combined))}


@pytest.mark.parametrize(
    ("printed", "expected"), [("1.44 M", 1.44e6), ("520 K", 520e3), ("123.0 G", 123e9), ("12M", 12e6), ("7", 7)]
)
def test_printed_figures(printed, expected):
    assert tables.value(printed) == pytest.approx(expected, rel=1e-12)


def test_a_figure_that_is_none():
    with pytest.raises(InputError, match=r"'12 T' in a paper\.yaml"):
        tables.value("12 T")


@pytest.fixture
def small_paper(tmp_path, monkeypatch):
    """A paper of one table, with a result of three seeds and one of five folds."""
    folder = tmp_path / "mine"
    folder.mkdir()
    rows = (
        "{row: A, config: a, paper: [50.0, 80.0], params: 0.2 M}, {row: B, config: b}, {row: C, paper: [10], params: 5}"
    )
    (folder / "paper.yaml").write_text(
        "paper: Mine\ntables:\n  - {table: 1, title: T, metrics: [top1, top5], counts: {params: params}, "
        f"rows: [{rows}]}}"
    )
    run = {"epochs": 3, "hours": 0.25, "hardware": {"cores": 2, "processor": "P"}, "versions": {"torch": "2"}}
    top1 = {"mean": 0.5, "standard_error": 0.01, "values": [0.48, 0.5, 0.52]}
    result = {"config": "configs/mine/a.yaml", "metrics": {"test/top1": top1}, "runs": [run] * 3}
    (folder / "a.json").write_text(json.dumps(result))
    (folder / "b_folds.json").write_text(json.dumps({**result, "config": "configs/mine/b.yaml", "folds": [1, 2, 3]}))
    (folder / "search.json").write_text("{}")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    return {"configs/mine/a.yaml": {"params": 250_000}, "configs/mine/b.yaml": {"params": 0}}


def test_rows_have_the_papers_figures_and_ours(small_paper):
    (table,) = tables.tables("mine", small_paper)
    a, b, c = table["rows"]
    ours = {"mean": 50.0, "standard_error": 1.0, "runs": 3}
    assert a["accuracy"] == {"top1": {"paper": 50.0, "ours": ours}, "top5": {"paper": 80.0, "ours": None}}
    assert a["costs"]["params"] == {"paper": "0.2 M", "ours": 250_000, "difference": pytest.approx(0.25)}
    assert b["costs"]["params"] == {"paper": None, "ours": 0, "difference": None}
    assert (c["config"], c["costs"]["params"]) == (None, {"paper": 5, "ours": None, "difference": None})
    costed = {config: dict.fromkeys(tables.COSTS, 1) for config in small_paper}
    assert [(run["mean"], run["of"], run["hours"]) for run in tables.runs("mine", costed)] == [
        (50, "seeds", 0.75),
        (50, "folds", 0.75),
    ]


def test_what_is_not_kept_is_counted(small_paper, monkeypatch):
    wanted = tables.needed("mine")
    assert wanted["configs/mine/a.yaml"] == sorted({*tables.COSTS})
    kept = {"configs/mine/a.yaml": dict.fromkeys(tables.COSTS, 7)}
    (tables.RESULTS / "mine/costs.json").write_text(json.dumps(kept))
    monkeypatch.setattr(tables, "count", lambda lacking: {config: {"params": 1} for config in lacking})
    assert tables.kept_costs("mine") == {**kept, "configs/mine/b.yaml": {"params": 1}}


def test_the_command(capsys):
    frugal.main(["tables", "expert-binary", "--json"])
    table = json.loads(capsys.readouterr().out)["expert_binary"]["tables"][2]
    assert (table["table"], table["rows"][6]["costs"]["bops"]["ours"]) == ("Table 4", 1_706_786_816)
    frugal.main(["tables", "biprop", "--markdown"])
    assert "| 1.812 M (1.44 M, +25.9 %) |" in capsys.readouterr().out
    frugal.main(["tables", "rexnet"])
    assert "Mask R-CNN: COCO val2017" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        frugal.main(["tables", "bipop"])
    assert "no tables of bipop: there are biprop, epitome, expert-binary, rexnet" in capsys.readouterr().err


@pytest.mark.parametrize("page", documents.PAGES, ids=lambda page: page.name)
def test_documents_are_up_to_date(page):
    """Else: make docs."""
    assert page.read_text() == documents.written(page)


@pytest.mark.parametrize("path", cost_pictures.pictures(), ids=lambda path: path.name)
def test_pictures_are_up_to_date(path):
    assert Image.open(path).text["Description"] == cost_pictures.digest(
        cost_pictures.panels(cost_pictures.pictures()[path])
    )
