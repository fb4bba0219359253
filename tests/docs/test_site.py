"""The docs as a reader sees them: built by mkdocs, and opened in a browser."""

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
#: A page of each kind: text, wide tables, long lines, docstrings.
KINDS = ("", "start/", "notes/questions/", "results/", "api/", "methods/ocgan/")

# one worker builds the pages, once
pytestmark = pytest.mark.xdist_group("site")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages, built as strictly as in `mkdocs build --strict`."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return folder


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and prints nothing."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Where the pages are served."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_docs_build_without_a_warning(site: Path) -> None:
    """Each page is in the menu, and each link and anchor has its target."""
    assert (site / "methods" / "ocgan" / "index.html").is_file()


def test_the_first_page_leads_to_every_other(site: Path) -> None:
    """By its own links, besides those of the menu; the methods by the page about all of them."""
    first, methods = (
        (ROOT / "docs" / name).read_text() for name in ("index.md", "methods/index.md")
    )
    for path in sorted((ROOT / "docs").rglob("*.md")):
        name = path.relative_to(ROOT / "docs").as_posix()
        if name == "index.md":
            continue
        assert f"]({name}" in first or f"]({path.name}" in methods, name


def open_window(browser: Any, width: int) -> Any:
    """An empty page, patient with a busy machine."""
    opened = browser.new_context(viewport={"width": width, "height": 800}).new_page()
    opened.set_default_timeout(120_000)
    return opened


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("page", KINDS)
def test_a_page_opens_without_a_complaint_and_fits(
    browser: Any, address: str, page: str, width: int
) -> None:
    """Nothing comes from the network, and a wide table scrolls by itself."""
    opened = open_window(browser, width)
    complaints: list[str] = []
    requests: list[str] = []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda request: requests.append(request.url))
    opened.goto(address + page)
    assert complaints == []
    assert [url for url in requests if not url.startswith((address, "data:"))] == []
    assert opened.evaluate("document.documentElement.scrollWidth") == width
    opened.context.close()


def test_the_menu_is_one_line_and_changes_the_colours(browser: Any, address: str) -> None:
    """A heading that is jumped to would lie under a higher menu."""
    opened = open_window(browser, 1280)
    opened.goto(address + "concepts/#floors")
    bottom = opened.evaluate("document.querySelector('.navbar').getBoundingClientRect().bottom")
    assert opened.locator("#floors").bounding_box()["y"] >= bottom
    for mode in ("dark", "light"):
        opened.click("#theme-menu")
        opened.click(f"[data-bs-theme-value={mode}]")
        assert opened.evaluate("document.documentElement.dataset.bsTheme") == mode
    opened.context.close()
