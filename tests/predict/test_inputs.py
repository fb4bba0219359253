"""What an input names: folders that cannot be looked into are listed, never passed over."""

from pathlib import Path

import pytest

from noveltylab.predict.inputs import Reader, expand, read_item
from tests.conftest import forbid
from tests.formats import write_images

READER = Reader("image", 1, 16, "", (0, 0), "mean")


@pytest.mark.parametrize("pattern", ["", "*", "**/*.png", "*/*/*.png"])
def test_a_folder_that_cannot_be_looked_into_is_an_item_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    write_images(tmp_path, {"lot/a": 2, "lot/b": 2})
    closed = tmp_path / "lot" / "b"
    forbid(monkeypatch, closed)
    items = [read_item(path, READER) for path in expand(str(tmp_path / pattern), READER)]
    assert [item.path.name for item in items if item.images is not None] == ["0000.png", "0001.png"]
    (bad,) = [item for item in items if item.images is None]
    assert (
        bad.path == closed and bad.error == "this folder cannot be looked into (Permission denied)"
    )
