"""The report page in a browser: on a phone and a desktop, light and dark, printed."""

import os
import shutil

import pytest
from conftest import settings_of
from matplotlib.image import imread
from playwright.sync_api import sync_playwright
from run_directories import write_search, write_study, write_training

from gbn_keras.training.report import report

pytestmark = pytest.mark.browser

SCREENS = {"phone": (390, 844), "desktop": (1200, 900)}

# Of each text its contrast with the ground behind it, by WCAG 2.
CONTRASTS = """() => {
  const channels = colour => colour.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b]
    .map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = channels(getComputedStyle(e).backgroundColor);
      if (colour[3] !== 0) return colour;
    }
    return [255, 255, 255];
  };
  const texts = [...document.body.querySelectorAll("*")].filter(e =>
    [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()));
  return texts.map(e => {
    const [a, b] = [channels(getComputedStyle(e).color), ground(e)].map(luminance);
    return [e.tagName, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
  });
}"""


@pytest.fixture(scope="module")
def browser():
    """An installed Chromium, without a window."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = [path for name in names if (path := shutil.which(name))]
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        found += [own] if os.path.exists(own) else []
        if not found and not os.environ.get("CI"):
            pytest.skip("no browser: apt-get install chromium, or playwright install")
        assert found, "no browser to look at the page with: install chromium"
        # A container's root has no sandbox, and the page is our own.
        arguments = ["--no-sandbox"]
        launched = playwright.chromium.launch(executable_path=found[0], args=arguments)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A page on several directories, finished and not."""
    folder = tmp_path_factory.mktemp("browser")
    flags = ("--model=f1_digits", "--batch_size=512", f"--run_dir={folder / 'run'}")
    write_training(settings_of(*flags), 0.9)
    run_dirs = [
        folder / "run",
        write_study(folder / "a_study_with_a_rather_long_name" / "study", finished=9),
        write_search(folder / "search"),
    ]
    return report.report_page(run_dirs, folder / "page.html")


@pytest.fixture
def opened(browser, file):
    """Opens the page; at the end nothing was complained of or fetched."""
    contexts, noise = [], []

    def fetched(request):
        if not request.url.startswith(("file:", "data:")):
            noise.append(request.url)

    def open_page(screen, scheme):
        width, height = SCREENS[screen]
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: noise.append(message.text))
        page.on("pageerror", lambda error: noise.append(str(error)))
        page.on("request", fetched)
        page.goto(file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not noise


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
def test_the_page_is_legible_on_a_screen(screen, scheme, opened, tmp_path):
    page = opened(screen, scheme)
    width = SCREENS[screen][0]
    # What is wider is moved by itself, not the page.
    assert page.evaluate("document.documentElement.scrollWidth") == width
    too_faint = [found for found in page.evaluate(CONTRASTS) if found[1] < 4.5]
    assert not too_faint
    pictures = page.evaluate(
        "[...document.images].map(i => [i.naturalWidth, i.width / i.naturalWidth])"
    )
    # The same in CSS's pixels as drawn, and never too small for their text.
    assert len(pictures) == 3
    assert all(natural > 300 and scale > 0.65 for natural, scale in pictures)
    shot = tmp_path / "page.png"
    page.screenshot(path=shot, full_page=True)
    pixels = imread(shot)
    assert pixels.shape[1] == width
    assert (pixels[0, 0, :3].mean() < 0.2) == (scheme == "dark")
    assert pixels[..., :3].std() > 0.05


def test_the_page_is_printed_on_white_paper(opened):
    page = opened("desktop", "dark")
    page.emulate_media(media="print")
    assert not [found for found in page.evaluate(CONTRASTS) if found[1] < 4.5]
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == "rgb(255, 255, 255)"
    # Nothing is cut off where paper cannot be moved: A4 within its margins.
    page.set_viewport_size({"width": 673, "height": 1000})
    hidden = page.evaluate(
        "[...document.querySelectorAll('.scrolled')]"
        ".filter(e => e.scrollWidth > e.clientWidth + 1).length"
    )
    assert not hidden
    assert page.pdf(format="A4").startswith(b"%PDF")
