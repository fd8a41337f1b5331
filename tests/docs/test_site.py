"""The site as it is built: every page opened in a browser, wide and narrow, every link followed."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import ROOT
from playwright.sync_api import Browser, sync_playwright

CHROMIUM = shutil.which("chromium")
WIDTHS = (1280, 360)

pytestmark = pytest.mark.slow


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and says nothing of it."""

    def do_GET(self) -> None:
        if self.path == "/favicon.ico":  # browsers ask for it by themselves, once, of a page that names none
            self.send_response(204)
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with every warning an error."""
    pytest.importorskip("mkdocs", reason="mkdocs comes with the extra docs")
    place = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(place)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return place


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_opens_and_every_link_leads_somewhere(
    width: int, site: Path, address: str, browser: Browser
) -> None:
    wrong: list[str] = []
    tab = browser.new_context(viewport={"width": width, "height": 900}).new_page()
    tab.on("pageerror", lambda error: wrong.append(f"{tab.url}: {error}"))
    tab.on("console", lambda said: wrong.append(f"{tab.url}: {said.text}") if said.type == "error" else None)
    tab.on("request", lambda asked: None if asked.url.startswith((address, "data:")) else wrong.append(asked.url))
    tab.on("response", lambda got: wrong.append(f"{got.status} {got.url}") if got.status >= 400 else None)
    waiting, seen = [f"{address}/index.html"], set()
    anchors: set[str] = set()
    asked_for: set[str] = set()
    while waiting:
        page = waiting.pop()
        if page in seen:
            continue
        seen.add(page)
        tab.goto(page)
        if (wide := tab.evaluate("document.documentElement.scrollWidth")) > width:
            wrong.append(f"{page} is {wide} wide")
        names = tab.evaluate("[...document.querySelectorAll('[id]')].map(one => one.id)")
        anchors |= {f"{page}#{name}" for name in names}
        for link in tab.evaluate("[...document.querySelectorAll('a[href]')].map(one => one.href)"):
            if link.startswith(address):
                target = link.partition("#")[0]
                if target.endswith(".html"):
                    waiting.append(target)
                    asked_for |= {link} if link.partition("#")[2] else set()
                elif not (site / target.removeprefix(address).lstrip("/")).exists():
                    wrong.append(f"{page} leads to {link}")
    assert wrong == []
    assert asked_for - anchors == set()
    pages = {f"{address}/{path.relative_to(site)}" for path in site.rglob("*.html") if path.name != "404.html"}
    assert pages <= seen
