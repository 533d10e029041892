"""llama.cpp's own server tests against `edge serve`, as far as they are portable (tests/vendored/llama_server/README.md)."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(3600)]  # many tests in one

SUITE = Path(__file__).parents[1] / "vendored" / "llama_server"
AT_LEAST = 88
"""Tests that pass; more are welcome."""


def test_what_is_portable_passes(model_path: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-c", SUITE / "pytest.ini", "--rootdir", SUITE, "--confcutdir", SUITE, SUITE]
    env = {**os.environ, "EDGE_TEST_MODEL": str(model_path)}
    done = subprocess.run([*command, "-q", f"--junitxml={report}"], capture_output=True, text=True, env=env, check=False)
    cases = list(ET.parse(report).iter("testcase"))
    skipped = {case.attrib["name"]: one.attrib["message"] for case in cases for one in case.iter("skipped")}
    assert done.returncode == 0, done.stdout[-8000:]
    assert len(cases) - len(skipped) >= AT_LEAST
    assert {name for name, why in skipped.items() if not why.startswith("not portable")} == {"test_cache_vs_nocache_prompt"}
