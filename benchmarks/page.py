"""The page of `sdpn serve` in Chromium: records, compares, enrols, identifies, listens, diarizes, and is looked at.

    python benchmarks/page.py --url=http://127.0.0.1:8000 --a=A.wav --b=B.wav --meeting=M.wav --output=FOLDER

The microphone is A.wav, again and again. Every section is photographed in both themes, as wide as a desk's screen and
as a telephone's, where nothing may be wider than the screen, and axe-core looks for what keeps people out. Prints what
is wrong, the browser's own errors and failed requests too, and exits with 1 if anything is. The two voices that it
enrols are deleted again. Needs playwright, axe-playwright-python and a Chromium.
"""

import base64
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from absl import app, flags
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Error, Locator, Page, Request, expect, sync_playwright

from sdpn_jax.errors import OK, VERDICT, returns_exit_code

SIZES = {"desk": (1280, 900), "telephone": (380, 800)}
THEMES = ("light", "dark")
RECORDED = "0:03"  # minutes and seconds of each recording
EVIL = "<img src=x onerror=alert(1)>"  # a name that must stay a text
FRIEND = "Ann / Zoë #1%"
VERDICTS = re.compile("Too close|Probably|Score")
PLAYING = re.compile(r"\bplaying\b")
ALL_RULES = {"rules": {"target-size": {"enabled": True}}}  # beside those that axe has switched on
WAIT_MS = 120_000  # the first question compiles the network
DROP = """
([bytes, name]) => {
    const data = Uint8Array.from(atob(bytes), (letter) => letter.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([data], name, { type: "audio/wav" }));
    return transfer;
}
"""


@dataclass
class Visit:
    """A page that is being looked at, and what was wrong so far."""

    page: Page
    output: Path
    troubles: list[str] = field(default_factory=list)

    def notice(self) -> None:
        """Collects what the browser complains of."""
        page, add = self.page, self.troubles.append
        page.on("console", lambda message: message.type == "error" and add(f"console: {message.text}"))
        page.on("pageerror", lambda error: add(f"exception: {error}"))
        page.on("requestfailed", lambda request: is_broken_off(request) or add(f"request failed: {request.url}"))
        page.on("response", lambda response: response.status >= 400 and add(f"{response.status}: {response.url}"))
        page.on("dialog", lambda dialog: (add(f"a name was run: {dialog.message}"), dialog.dismiss()))

    def look(self, name: str) -> None:
        """Photographs the page as it is in both themes and sizes, and has axe look at each."""
        for theme in THEMES:
            for size, (width, height) in SIZES.items():
                self.page.emulate_media(color_scheme=theme)
                self.page.set_viewport_size({"width": width, "height": height})
                self.page.screenshot(path=self.output / f"{name}-{theme}-{size}.png", full_page=True)
                seen = f"{name}, {theme}, {size}"
                if self.page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                    self.troubles.append(f"{seen}: wider than the screen")
                for violation in Axe().run(self.page, options=ALL_RULES).response["violations"]:
                    where = ", ".join(str(node["target"]) for node in violation["nodes"])
                    self.troubles.append(f"{seen}: {violation['id']}: {violation['help']} ({where})")
        self.page.set_viewport_size(dict(zip(("width", "height"), SIZES["desk"], strict=True)))


def is_broken_off(request: Request) -> bool:
    """Whether it is a player that has read enough of a recording for now."""
    return request.url.startswith("blob:") and request.failure == "net::ERR_ABORTED"


def record(slot: Locator) -> None:
    """Three seconds from the microphone."""
    slot.locator(".record").click()
    expect(slot.locator(".seconds")).to_contain_text(RECORDED)
    slot.locator(".record").click()
    expect(slot.locator(".recordings > li")).to_have_count(1)


def drop(page: Page, slot: Locator, path: Path) -> None:
    data = base64.b64encode(path.read_bytes()).decode()
    transfer = page.evaluate_handle(DROP, [data, path.name])
    slot.locator(".slot").dispatch_event("drop", {"dataTransfer": transfer})
    expect(slot.locator(".recordings .name")).to_have_text(path.name)


def open_tab(page: Page, name: str) -> Locator:
    page.locator(f"#tab-{name}").click()
    return page.locator(f"#{name}")


def compare(visit: Visit, b: Path) -> None:
    page, same = visit.page, open_tab(visit.page, "same")
    visit.look("empty")
    record(page.locator("#same-a"))
    drop(page, page.locator("#same-b"), b)
    page.locator("#compare").click()
    expect(same.locator(".verdict")).to_have_text(VERDICTS)
    expect(same.locator(".log-mel")).to_have_count(2)
    visit.look("same")


def enrol(visit: Visit, b: Path) -> None:
    """A name that would run if it were HTML from a file, and another from the microphone."""
    page, who = visit.page, open_tab(visit.page, "who")
    slot = page.locator("#enrol-slot")
    for name, give in ((EVIL, lambda: drop(page, slot, b)), (FRIEND, lambda: record(slot))):
        page.locator("#enrol-name").fill(name)
        give()
        page.locator("#enrol button.main").click()
        expect(page.locator("#enrol-message")).to_contain_text(f"{name} is enrolled")
        expect(voice(who, name)).to_be_visible()
    expect(page.locator("#map circle title").filter(has_text=EVIL)).to_have_count(1)


def voice(who: Locator, name: str) -> Locator:
    return who.locator("#voices > li").filter(has_text=name)


def identify(visit: Visit) -> None:
    page = visit.page
    record(page.locator("#identify-slot"))
    page.locator("#identify").click()
    expect(page.locator("#who .ranking-here")).to_contain_text(FRIEND)
    expect(page.locator("#who .log-mel")).to_have_count(1)
    page.locator("#who details > summary").click()
    visit.look("who")


def listen(visit: Visit) -> None:
    page, live = visit.page, open_tab(visit.page, "live")
    page.locator("#listen").click()
    expect(live.locator(".ranking-here")).to_contain_text(FRIEND)
    page.wait_for_timeout(3000)
    visit.look("live")
    page.locator("#listen").click()
    expect(live.locator(".verdict")).to_have_text("Not listening.")


def delete(visit: Visit) -> None:
    page, who = visit.page, open_tab(visit.page, "who")
    voice(who, EVIL).get_by_role("button").click()
    expect(page.locator("#confirm-text")).to_have_text(f"Delete the voice of {EVIL}?")
    visit.look("confirm")
    page.locator("#confirm .danger").click()
    expect(voice(who, EVIL)).to_have_count(0)
    voice(who, FRIEND).get_by_role("button").click()
    page.keyboard.press("Escape")
    expect(voice(who, FRIEND)).to_be_visible()
    voice(who, FRIEND).get_by_role("button").click()
    page.locator("#confirm .danger").click()
    expect(voice(who, FRIEND)).to_have_count(0)


def diarize(visit: Visit, meeting: Path) -> None:
    """A stretch of the timeline by mouse and the next by keyboard, and the download."""
    page, when = visit.page, open_tab(visit.page, "when")
    drop(page, page.locator("#when-slot"), meeting)
    page.locator("#diarize button").click()
    expect(when.locator(".segment").first).to_be_visible()
    first = when.locator(".segment[data-number='0']")
    first.click()
    expect(first).to_have_class(PLAYING)
    visit.look("when")
    expect(first).not_to_have_class(PLAYING)  # it ends by itself
    if when.locator(".segment").count() > 1:
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        expect(when.locator(".segment[data-number='1']")).to_have_class(PLAYING)
    page.locator("#stop").click()
    expect(when.locator(".playing")).to_have_count(0)
    with page.expect_download() as download:
        page.locator("#rttm").click()
    rttm = visit.output / download.value.suggested_filename
    download.value.save_as(rttm)
    if len(rttm.read_text().splitlines()) != when.locator(".segment").count():
        visit.troubles.append(f"{rttm.name} has not a line for each stretch")


def read_documentation(visit: Visit) -> None:
    visit.page.locator("header nav a").click()
    expect(visit.page.locator(".operation").first).to_be_visible()
    visit.look("docs")


@contextmanager
def chromium_page(chromium: str | None, microphone: Path) -> Iterator[Page]:
    arguments = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    arguments += [f"--use-file-for-fake-audio-capture={microphone.absolute()}"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        context = browser.new_context(permissions=["microphone"], reduced_motion="reduce")
        context.set_default_timeout(WAIT_MS)
        yield context.new_page()
        browser.close()


def walk(url: str, a: Path, b: Path, meeting: Path, output: Path, chromium: str | None) -> list[str]:
    """Uses the whole page at `url` as a person would, photographs it into `output`, and returns what was wrong."""
    output.mkdir(parents=True, exist_ok=True)
    expect.set_options(timeout=WAIT_MS)
    with chromium_page(chromium, a) as page:
        visit = Visit(page, output)
        visit.notice()
        try:
            page.goto(url)
            compare(visit, b)
            enrol(visit, b)
            identify(visit)
            listen(visit)
            delete(visit)
            diarize(visit, meeting)
            read_documentation(visit)
        except (Error, AssertionError) as error:
            visit.troubles.append(str(error))
        return visit.troubles


def main(_) -> int:
    paths = (Path(path) for path in (FLAGS.a, FLAGS.b, FLAGS.meeting, FLAGS.output))
    troubles = walk(FLAGS.url, *paths, FLAGS.chromium)
    print("\n".join(troubles) or f"nothing is wrong; pictures are in {FLAGS.output}")
    return VERDICT if troubles else OK


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("url", "http://127.0.0.1:8000", "Where `sdpn serve` is.")
    flags.DEFINE_string("a", None, "A WAV of one speaker: the microphone.", required=True)
    flags.DEFINE_string("b", None, "A WAV of one speaker.", required=True)
    flags.DEFINE_string("meeting", None, "A WAV of several speakers.", required=True)
    flags.DEFINE_string("output", None, "The folder for the pictures.", required=True)
    flags.DEFINE_string("chromium", shutil.which("chromium"), "The browser; Playwright's own if there is no other.")
    app.run(returns_exit_code(main))
