import json

import pytest

from benchmarks import ui
from tests.ui.browser import needs_chromium


@needs_chromium
@pytest.mark.slow
def test_the_report_of_generated_embeddings_is_measured(capfd: pytest.CaptureFixture[str]) -> None:
    ui.main(["--images", "600", "--rounds", "2", "--json"])
    result = json.loads(capfd.readouterr().out)
    assert result["images"] == 600
    assert set(result["milliseconds"]) == {
        *("page", "map", "figures", "suspects", "neighbours", "coordinates", "interactive")
    }
    assert all(0 < value < 60_000 for found in result["milliseconds"].values() for value in found.values())
    assert ui.table(result).splitlines()[0] == "| ms | first | then | goal |"
