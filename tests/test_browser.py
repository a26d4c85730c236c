"""The web page in a real browser (`make test-browser`): every tab, sliders that change pictures,
guides that are dragged, bad files, two users at once."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
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
        self.page.get_by_role("tab", name=tab, exact=True).click(timeout=PATIENCE / 4)

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

    def said(self, words: str | re.Pattern[str]) -> None:
        """Wait for a message with these words."""
        self.page.get_by_text(words).first.wait_for(state="visible")

    def silent(self) -> None:
        """Wait until no message is left."""
        sync_api.expect(self.page.locator(".toast-body")).to_have_count(0, timeout=PATIENCE)


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
        ("curves-row", 3),
    ],
)
def test_a_slider_changes_the_paths(user: User, name: str, value: float) -> None:
    user.open("Curves")
    before = user.picture("curves-paths")
    user.type(name, value)
    user.changed("curves-paths", before)


def drag(user: User, guide: str, across: float, up: float) -> None:
    """Drag a guide by so many pixels."""
    box = user.page.locator(f"#curves-paths circle[data-guide={guide}]").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    user.page.mouse.move(x, y)
    user.page.mouse.down()
    user.page.mouse.move(x + across, y - up, steps=3)
    user.page.mouse.up()


def test_a_guide_is_dragged_in_the_picture_and_put_back(user: User) -> None:
    user.open("Curves")
    first = user.picture("curves-paths")
    guide = user.page.locator("#curves-paths circle[data-guide=P2]")
    guide.scroll_into_view_if_needed()
    was = guide.bounding_box()
    drag(user, "P2", 60, 90)
    moved = user.changed("curves-paths", first)
    now = guide.bounding_box()
    assert abs(now["x"] - was["x"] - 60) < 2  # as drawn anew by the server
    assert abs(now["y"] - was["y"] + 90) < 2
    guide.press("ArrowLeft")
    moved = user.changed("curves-paths", moved)
    assert guide.bounding_box()["x"] < now["x"]
    user.page.locator("#curves-back").click()
    user.changed("curves-paths", moved)
    sync_api.expect(user.page.locator("#curves-paths img").first).to_have_attribute("src", first)


def test_weights_change_samples_and_measures_and_guides_do_not(user: User) -> None:
    user.open("Curves")
    before, table = (
        user.picture("curves-samples"),
        user.page.locator("#curves-measures").inner_text(),
    )
    paths = user.picture("curves-paths")
    drag(user, "P1", 0, 50)
    user.changed("curves-paths", paths)
    assert user.picture("curves-samples") == before
    user.type("curves-weight-1", 0.5)
    user.changed("curves-samples", before)
    sync_api.expect(user.page.locator("#curves-measures")).not_to_have_text(table)


def test_guides_of_the_teachers_ends_need_a_cubic(user: User) -> None:
    user.open("Curves")
    user.picture("curves-paths")
    user.type("curves-degree", 1)
    before = user.picture("curves-paths")
    user.choose("curves-guides", "where each teacher alone ends")
    sync_api.expect(user.page.locator("#curves-degree input[type=number]")).to_have_value("3")
    user.changed("curves-paths", before)


def test_a_student_is_trained_and_forgotten_with_its_curves(user: User) -> None:
    user.open("Curves")
    before = user.picture("curves-samples")
    user.page.locator("#curves-distil").click()
    user.said("simulating the curves")
    user.said(re.compile(r"step [1-9][\d,]* of 1,100"))
    user.changed("curves-samples", before)
    user.type("curves-weight-0", 1.2)
    user.changed("curves-samples", before)
    user.type("curves-weight-0", 1)
    sync_api.expect(user.page.locator("#curves-samples img").first).not_to_have_attribute(
        "src", before
    )  # the student is there again


def test_generate_follows_seed_passes_labels_and_guidance(user: User) -> None:
    speed = user.page.locator("#generate-speed")
    sync_api.expect(speed.get_by_role("heading")).to_have_text(
        re.compile(r"^[\d.]+ times as fast$")
    )
    sync_api.expect(speed).to_contain_text("digits against its teacher digits-teacher")
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
    sync_api.expect(user.page.locator("#generate-teacher-words")).to_contain_text("digits-teacher")


def test_a_bad_number_is_a_message_until_it_is_mended(user: User) -> None:
    before = user.picture("generate-ours")
    user.type("generate-seed", -1)
    user.said("expected a whole number from 0")
    user.page.wait_for_timeout(11_000)  # longer than messages that go by themselves
    user.said("expected a whole number from 0")
    user.type("generate-seed", 2)
    user.changed("generate-ours", before)
    user.silent()


def zipped(file: Path, content: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return file


def test_ones_own_student_is_uploaded_and_what_is_none_is_refused(
    user: User, tmp_path: Path
) -> None:
    before = user.picture("generate-ours")
    drop = user.page.locator("input[type=file][accept='.zip']")
    drop.set_input_files(str(zipped(tmp_path / "none.zip", {"notes.txt": b"none"})))
    user.said("holds 0 files model.json")
    guided = BUNDLED / "digits-guided"
    student = {f"mine/{file.name}": file.read_bytes() for file in guided.iterdir()}
    drop.set_input_files(str(zipped(tmp_path / "mine.zip", student)))
    user.changed("generate-ours", before)
    user.silent()
    sync_api.expect(user.page.locator("#generate-words")).to_contain_text("yours (")
    sync_api.expect(user.page.locator("#generate-guidance")).to_be_visible()
    sync_api.expect(user.page.locator("#generate-teacher-words")).to_contain_text("digits-teacher")


def test_pictures_can_be_downloaded(user: User, tmp_path: Path) -> None:
    def downloaded(tab: str, name: str) -> None:
        user.open(tab)
        user.picture(name)
        with user.page.expect_download() as started:
            user.page.locator(f"#{name}").get_by_title("Download").or_(
                user.page.locator(f"#{name} a[download]")
            ).first.click()
        started.value.save_as(tmp_path / name)
        with Image.open(tmp_path / name) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) > 100

    downloaded("Generate", "generate-ours")
    downloaded("Generate", "generate-theirs")
    downloaded("Curves", "curves-paths")
    downloaded("Curves", "curves-samples")
    downloaded("Compare", "compare-quality")


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
    (tmp_path / "large.png").write_bytes(bytes(65 * 2**20))
    user.page.locator("#translate-file input[type=file]").set_input_files(
        str(tmp_path / "large.png")
    )
    user.said("exceed the maximum allowed size")


def test_compare_sorts_and_filters(user: User) -> None:
    user.open("Compare")
    before, table = user.picture("compare-quality"), user.page.locator("#compare-table")
    sync_api.expect(table).to_contain_text("bezier")
    first = table.locator("tbody tr").first.locator("td").nth(2)  # its method
    sync_api.expect(first).to_have_text("bezier")
    head = table.get_by_role("columnheader", name="excess")
    head.click()
    sync_api.expect(head).to_have_attribute("aria-sort", "ascending")
    sync_api.expect(first).to_have_text("bezier")
    head.click()
    sync_api.expect(head).to_have_attribute("aria-sort", "descending")
    sync_api.expect(first).to_have_text("teacher-euler")  # the worst
    table.get_by_role("columnheader", name="method").click()  # words as words
    sync_api.expect(first).to_have_text("bezier")
    head.click()
    head.click()
    user.choose("compare-metric", "energy distance")
    before = user.changed("compare-quality", before)
    user.page.locator("#compare-passes").get_by_label("1", exact=True).uncheck()
    user.changed("compare-quality", before)
    sync_api.expect(first).to_have_text("teacher-euler")  # still sorted


def test_two_users_do_not_see_each_other(browser: Any, address: str) -> None:
    one, two = User(browser, address), User(browser, address)
    one.open("Curves")
    two.open("Curves")
    first = one.picture("curves-paths"), two.picture("curves-paths")
    assert first[0] == first[1]
    one.choose("curves-task", "gaussians")
    two.choose("curves-task", "spirals")
    one.page.locator("#curves-distil").click()
    two.page.locator("#curves-distil").click()
    ours, theirs = one.changed("curves-paths", first[0]), two.changed("curves-paths", first[1])
    assert ours != theirs
    three = User(browser, address)
    three.open("Curves")
    three.picture("curves-paths")
    three.choose("curves-task", "gaussians")
    assert three.changed("curves-paths", first[0]) == ours  # as somebody alone sees it
    for user in (one, two, three):
        assert not user.errors
        user.page.context.close()


def test_a_phone_shows_every_tab_in_a_line_and_pictures_before_controls(
    browser: Any, address: str
) -> None:
    user = User(browser, address, width=390)
    user.picture("generate-ours")
    tabs = [one.bounding_box() for one in user.page.get_by_role("tab").all()]
    assert len(tabs) == 4
    assert len({box["y"] for box in tabs}) == 1
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in tabs)
    for tab, picture, control in (
        ("Generate", "generate-ours", "generate-model"),
        ("Curves", "curves-paths", "curves-task"),
        ("Translate", "translate-gallery", "translate-model"),
        ("Compare", "compare-quality", "compare-metric"),
    ):
        user.open(tab)
        user.picture(picture)
        assert user.page.evaluate("document.documentElement.scrollWidth") <= 390
        above, below = (user.page.locator(f"#{name}").bounding_box() for name in (picture, control))
        assert above["y"] + above["height"] <= below["y"]
    user.page.context.close()


def test_a_run_of_ones_own_without_translation_or_arena(
    browser: Any, serve: Callable[..., str], tmp_path: Path
) -> None:
    shutil.copytree(BUNDLED / "digits", tmp_path / "run" / "student")
    user = User(browser, serve("--run", str(tmp_path / "run")))
    user.picture("generate-ours")
    sync_api.expect(user.page.get_by_role("tab", name="Translate", exact=True)).to_have_count(0)
    user.said("Its teacher is not in this run")
    user.open("Compare")
    user.said("This run holds no arena")
    user.page.context.close()
