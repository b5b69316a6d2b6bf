"""The dashboard of a W&B project: what is sent, what is written instead, what is refused."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces.reports.v2 import internal as report_models
from wandb_workspaces.workspaces import internal as workspace_models

import frugal
from commands import dashboard, dashboard_layout


def test_written_layout_is_read_back_by_the_librarys_models(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wandb, "Api", None)  # nothing is asked
    frugal.main(["dashboard", "digits", "--entity", "us", "--out", "plan/digits.json"])
    assert capsys.readouterr().out == "plan/digits.json: what would be sent\n"
    content = json.loads(Path("plan/digits.json").read_text())
    view = workspace_models.View.model_validate(content["workspace"])
    assert view.model_dump(mode="json", by_alias=True, exclude_none=True) == content["workspace"]
    shown = ws.Workspace._from_model(view)
    assert (shown.entity, shown.project) == ("us", "digits")
    spec = report_models.ReportViewspec.model_validate(content["report"])
    again = spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    for ours, theirs in zip(content["report"]["spec"]["blocks"], again["spec"]["blocks"], strict=True):
        assert ours == theirs or ours["type"] in ("paragraph", "heading")  # they get a list of comments
    written = wr.Report._from_model(spec)
    grids = [block for block in written.blocks if isinstance(block, wr.PanelGrid)]
    titles = [block.text for block in written.blocks if isinstance(block, wr.H1)]
    expected = list(dashboard_layout.groups())
    assert [section.name for section in shown.sections] == titles == [group.name for group in expected]
    for section, grid, group in zip(shown.sections, grids, expected, strict=True):
        kinds = [type(panel) for panel in group.panels]
        assert [type(panel) for panel in section.panels] == [type(panel) for panel in grid.panels] == kinds


@pytest.mark.parametrize("reason", ["No API key configured.", "the server\ndoes not answer"])
def test_without_a_login_or_a_server_it_writes_and_says_so(tmp_path, monkeypatch, capsys, reason):
    def api(timeout):
        assert not sys.stdin.isatty()  # W&B would ask for a key
        raise wandb.errors.UsageError(reason)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wandb, "Api", api)
    monkeypatch.setattr(sys, "stdin", terminal := SimpleNamespace(isatty=lambda: True))
    frugal.main(["dashboard", "digits"])
    (line,) = capsys.readouterr().out.splitlines()
    assert " ".join(reason.split()) in line
    assert line.endswith("What would be sent is in runs/dashboard_digits.json")
    assert json.loads(Path("runs/dashboard_digits.json").read_text()).keys() == {"workspace", "report"}
    assert sys.stdin is terminal


def test_it_sends_both_to_the_users_own_project(tmp_path, monkeypatch):
    sent = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wandb, "Api", lambda timeout: SimpleNamespace(default_entity="me"))
    for part in (ws.Workspace, wr.Report):
        monkeypatch.setattr(part, "save", lambda self: sent.append((type(self), self.entity, self.project)))
    for given, entity in (([], "me"), (["--entity", "us"], "us")):
        frugal.main(["dashboard", "digits", *given])
        assert sent == [(ws.Workspace, entity, "digits"), (wr.Report, entity, "digits")]
        sent.clear()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [("us/digits", "--entity"), ("digits", r"pip install -e '\.\[dashboard\]'")],
)
def test_refusals(monkeypatch, capsys, given, message):
    monkeypatch.setitem(sys.modules, "commands.dashboard_layout", None)
    monkeypatch.delattr("commands.dashboard_layout")
    with pytest.raises(SystemExit) as stop:
        frugal.main(["dashboard", given])
    assert stop.value.code == 1
    assert re.fullmatch(f"frugal: error: .*{message}.*\n", capsys.readouterr().err)


def test_help_is_worth_reading(capsys):
    with pytest.raises(SystemExit):
        dashboard.main(["--help"])
    text = capsys.readouterr().out
    assert all(part in text for part in ("--entity", "--out", "frugal dashboard digits", "docs/dashboards.md"))
