"""The text that recoveries of tiny models are trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ["the", "a", "of", "edge", "model", "reads", "writes", "small", "large", "device", "token", "layer", "learns"]
    chance = np.random.default_rng(1)
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n\n".join(" ".join(chance.choice(words, 60)) for _ in range(60)), encoding="utf-8")
    return path
