"""Fixtures shared by all tests."""

from pathlib import Path

import pytest

DATA = Path(__file__).parent / "data"


@pytest.fixture
def models() -> Path:
    """Folder of tiny SavedModels: one base path per model, see data/README.md."""
    return DATA / "models"
