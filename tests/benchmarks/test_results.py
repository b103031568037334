"""What docs/speed.md and PROJECTION.md say was measured is what the committed results say."""

import json
from pathlib import Path

import nexus_transformers
from benchmarks import project, speed_report

ROOT = Path(nexus_transformers.__file__).parent
RESULTS = ROOT / "benchmarks" / "results"


def test_the_page_has_the_measured_table():
    report = json.loads((RESULTS / "speed_targets.json").read_text())
    assert (report["preset"], report["processes"]) == ("targets", 3)
    assert speed_report.judge(report["rows"]) == report["targets"]
    table = speed_report.markdown(report)
    assert (RESULTS / "speed_targets.md").read_text() == table
    assert table in (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")


def test_the_projection_is_made_from_it():
    assert project.page(project.Overhead.read(RESULTS / "speed_targets.json")) == (
        ROOT / "benchmarks" / "PROJECTION.md"
    ).read_text(encoding="utf-8")
