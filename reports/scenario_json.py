"""`clinical.json`: a scenario's report for machines, without the verdicts on single images, which the run's folder holds."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from robustbench_lite.scenarios import Measured, ScenarioReport

from .believing import command_of
from .plain_json import json_text
from .scenario_rows import DISCLAIMER, goal_of, intervals, summary

SCHEMA = 1
"""Version of what `clinical.json` holds. Within a version names are only ever added."""


def json_of(report: ScenarioReport) -> str:
    """What the file holds; what is infinite is the text `inf`, since JSON has no such number."""
    scenario, config = report.scenario, report.result.config
    told = {name: getattr(scenario, name) for name in ("title", "domain", "who", "can", "happens", "goal", "sensitivity")}
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "disclaimer": DISCLAIMER,
        "synthetic": report.synthetic,
        "summary": summary(report),
        "name": report.name,
        "scenario": told,
        "success_means": goal_of(report),
        "models": report.models,
        "data": {"name": config["data"]["name"], "task": config["data"].get("task"), "class_names": config["data"].get("class_names")},
        "operating_point": None if report.point is None else asdict(report.point),
        "intervals": intervals(report),
        "rows": [_row(report, measured) for measured in report.rows],
        "published": None if scenario.published is None else asdict(scenario.published),
        "notes": list(report.notes),
        "command": command_of(report.result),
    }
    return json_text(content)


def _row(report: ScenarioReport, measured: Measured) -> dict[str, Any]:
    trust = report.result.trust.get(measured.condition or "")
    believed = None if trust is None else {"level": trust.level, "at_most": trust.at_most, "reasons": list(trust.reasons)}
    return asdict(measured) | {"trust": believed}
