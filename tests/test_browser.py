"""The web page in a real browser (`make test-browser`): every tab, sliders that change pictures,
bad files, two users at once."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.browser
sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: make test-browser"
)
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
]
PATIENCE = 60_000  # milliseconds; the machine may be busy
BUNDLED = Path(__file__).parents[1] / "src" / "bezierdistill" / "bundled"


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[..., str]]:
    """Start a page, as the command does, and give its address."""
    running: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [
            sys.executable,
            "-m",
            "bezierdistill.cli",
            "app",
            "--port",
            str(port),
            *arguments,
        ]
        running.append(
            subprocess.Popen(
                command, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}
            )
        )
        address = f"http://127.0.0.1:{port}"
        for _ in range(PATIENCE // 500):
            assert running[-1].poll() is None, "the page's process has ended"
            try:
                urllib.request.urlopen(address, timeout=5).close()
                return address
            except OSError:
                time.sleep(0.5)
        raise TimeoutError(address)

    yield start
    for process in running:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def address(serve: Callable[..., str]) -> str:
    """The page of the run that ships with the package."""
    return serve()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


class User:
    """Someone with a page open."""

    def __init__(self, browser: Any, address: str, width: int = 1280) -> None:
        self.page = browser.new_context(viewport={"width": width, "height": 900}).new_page()
        self.page.set_default_timeout(PATIENCE)
        self.asked: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(address)

    def open(self, tab: str) -> None:
        self.page.get_by_role("tab", name=tab, exact=True).click()

    def type(self, name: str, value: float) -> None:
        box = self.page.locator(f"#{name} input[type=number]")
        box.fill(str(value))
        box.press("Enter")

    def choose(self, name: str, label: str) -> None:
        self.page.locator(f"#{name}").get_by_label(label, exact=True).check()

    def picture(self, name: str) -> str:
        """Where the picture lies; its name is a digest of what it shows."""
        image = self.page.locator(f"#{name} img").first
        image.wait_for(state="visible")
        return str(image.get_attribute("src"))

    def changed(self, name: str, before: str) -> str:
        """The picture once it is another."""
        sync_api.expect(self.page.locator(f"#{name} img").first).not_to_have_attribute(
            "src", before, timeout=PATIENCE
        )
        return self.picture(name)

    def said(self, words: str) -> None:
        """Wait for a message with these words."""
        self.page.get_by_text(words).first.wait_for(state="visible")


@pytest.fixture
def user(browser: Any, address: str) -> Iterator[User]:
    opened = User(browser, address)
    yield opened
    assert not opened.errors
    assert {url.split("/")[2] for url in opened.asked if url.startswith("http")} == {
        address.split("/")[2]
    }, "something was asked elsewhere"
    opened.page.context.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("curves-weight-0", -0.5),
        ("curves-weight-2", 0),
        ("curves-degree", 2),
        ("curves-across", 1),
        ("curves-row", 6),
    ],
)
def test_a_slider_changes_the_paths(user: User, name: str, value: float) -> None:
    before = user.picture("curves-paths")
    user.type(name, value)
    user.changed("curves-paths", before)


def test_weights_change_samples_and_measures_and_guides_do_not(user: User) -> None:
    before, table = (
        user.picture("curves-samples"),
        user.page.locator("#curves-measures").inner_text(),
    )
    user.type("curves-up", 1)
    user.changed("curves-paths", user.picture("curves-paths"))
    assert user.picture("curves-samples") == before
    user.type("curves-weight-1", 0.5)
    user.changed("curves-samples", before)
    sync_api.expect(user.page.locator("#curves-measures")).not_to_have_text(table)


def test_guides_of_the_teachers_ends_need_a_cubic(user: User) -> None:
    user.type("curves-degree", 1)
    before = user.picture("curves-paths")
    user.choose("curves-guides", "where each teacher alone ends")
    sync_api.expect(user.page.locator("#curves-degree input[type=number]")).to_have_value("3")
    user.changed("curves-paths", before)


def test_a_student_is_trained_and_forgotten_with_its_curves(user: User) -> None:
    user.choose("curves-task", "moons")
    before = user.changed("curves-samples", user.picture("curves-samples"))
    user.page.locator("#curves-distil").click()
    user.changed("curves-samples", before)
    user.type("curves-weight-0", 1.2)
    user.changed("curves-samples", before)
    user.type("curves-weight-0", 1)
    sync_api.expect(user.page.locator("#curves-samples img").first).not_to_have_attribute(
        "src", before
    )  # the student is there again


def test_generate_follows_seed_passes_labels_and_guidance(user: User) -> None:
    user.open("Generate")
    ours, theirs = user.picture("generate-ours"), user.picture("generate-theirs")
    user.type("generate-passes", 2)
    ours = user.changed("generate-ours", ours)
    assert user.picture("generate-theirs") == theirs
    user.type("generate-seed", 7)
    ours, theirs = user.changed("generate-ours", ours), user.changed("generate-theirs", theirs)
    user.choose("generate-labels", "3")
    ours = user.changed("generate-ours", ours)
    sync_api.expect(user.page.locator("#generate-guidance")).to_be_hidden()
    user.page.locator("#generate-model input").click()
    user.page.get_by_role("option", name="digits-guided").click()
    ours = user.changed("generate-ours", ours)
    sync_api.expect(user.page.locator("#generate-guidance")).to_be_visible()
    user.type("generate-guidance", 3)
    user.changed("generate-ours", ours)
    sync_api.expect(user.page.locator("#generate-teacher-words")).to_contain_text("times as long")


def test_a_bad_number_is_a_message(user: User) -> None:
    user.open("Generate")
    before = user.picture("generate-ours")
    user.type("generate-seed", -1)
    user.said("expected a whole number from 0")
    user.type("generate-seed", 2)
    user.changed("generate-ours", before)


def test_translate_shows_files_and_refuses_what_is_no_image(user: User, tmp_path: Path) -> None:
    user.open("Translate")
    before = user.picture("translate-gallery")
    drop = user.page.locator("#translate-file input[type=file]")
    for name, content in {
        "notes.txt": b"no image",
        "broken.png": b"\x89PNG\r\n\x1a\n broken",
        "empty.jpg": b"",
    }.items():
        (tmp_path / name).write_bytes(content)
        drop.set_input_files(str(tmp_path / name))
        user.said(f"{name} cannot be read as an image")
        user.page.locator("#translate-file").get_by_label("Remove this file").or_(
            user.page.locator("#translate-file").get_by_label("Clear")
        ).first.click()
    stripes = np.zeros((40, 60, 3), np.uint8)
    stripes[:, 20:40, 1] = 255
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    drop.set_input_files(str(tmp_path / "stripes.png"))
    user.changed("translate-gallery", before)
    sync_api.expect(user.page.locator("#translate-gallery")).to_contain_text("student, 1 pass")
    sync_api.expect(user.page.locator("#translate-gallery img")).to_have_count(4)


def test_a_large_file_is_refused(user: User, tmp_path: Path) -> None:
    user.open("Translate")
    (tmp_path / "large.png").write_bytes(bytes(9 * 2**20))
    user.page.locator("#translate-file input[type=file]").set_input_files(
        str(tmp_path / "large.png")
    )
    user.said("exceed the maximum allowed size")


def test_compare_sorts_and_filters(user: User) -> None:
    user.open("Compare")
    before, table = user.picture("compare-quality"), user.page.locator("#compare-table")
    sync_api.expect(table).to_contain_text("bezier")
    first = table.locator("[role=gridcell]").nth(2)  # its method
    sync_api.expect(first).to_have_text("bezier")
    user.page.locator("#compare-order").get_by_label("Remove passes").or_(
        user.page.locator("#compare-order .token-remove")
    ).first.click()
    user.page.locator("#compare-order .token-remove").first.click()
    user.page.locator("#compare-order input").click()
    user.page.get_by_role("option", name="excess").click()
    user.page.locator("#compare-falling input").check()
    sync_api.expect(first).to_have_text("teacher-euler")  # the worst
    user.choose("compare-metric", "energy distance")
    before = user.changed("compare-quality", before)
    user.page.locator("#compare-passes").get_by_label("1", exact=True).uncheck()
    user.changed("compare-quality", before)


def test_two_users_do_not_see_each_other(browser: Any, address: str) -> None:
    one, two = User(browser, address), User(browser, address)
    first = one.picture("curves-paths"), two.picture("curves-paths")
    assert first[0] == first[1]
    one.choose("curves-task", "moons")
    two.choose("curves-task", "spirals")
    one.page.locator("#curves-distil").click()
    two.page.locator("#curves-distil").click()
    moons, spirals = one.changed("curves-paths", first[0]), two.changed("curves-paths", first[1])
    assert moons != spirals
    three = User(browser, address)
    three.choose("curves-task", "moons")
    assert three.changed("curves-paths", first[0]) == moons  # as somebody alone sees it
    for user in (one, two, three):
        assert not user.errors
        user.page.context.close()


def test_a_phone_shows_every_tab_without_scrolling_sideways(browser: Any, address: str) -> None:
    user = User(browser, address, width=390)
    user.picture("curves-paths")
    for tab in ("Curves", "Generate", "Translate", "Compare"):
        if user.page.get_by_role("tab", name=tab, exact=True).is_visible():
            user.open(tab)
        else:
            user.page.get_by_role("button", name="More tabs").click()
            user.page.locator(".overflow-dropdown").get_by_text(tab, exact=True).click()
        assert user.page.evaluate("document.documentElement.scrollWidth") <= 390
    user.page.context.close()


def test_a_run_of_ones_own_without_translation_or_arena(
    browser: Any, serve: Callable[..., str], tmp_path: Path
) -> None:
    shutil.copytree(BUNDLED / "digits", tmp_path / "run" / "student")
    user = User(browser, serve("--run", str(tmp_path / "run")))
    user.picture("curves-paths")
    sync_api.expect(user.page.get_by_role("tab", name="Translate", exact=True)).to_have_count(0)
    user.open("Generate")
    user.said("Its teacher is not in this run")
    user.open("Compare")
    user.said("This run holds no arena")
    user.page.context.close()
