"""The built pages: formulas are MathML, links lead somewhere, and tables say what the code has."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from chromium import Chromium, chromium_path

from rmtllmf_jax.fusion import METHODS

pytest.importorskip("mkdocs", reason="pip install 'rmtllmf-jax[docs]'")

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.fixture
def mathml(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    monkeypatch.syspath_prepend(str(DOCS))
    return import_module("mathml").mathml


@pytest.mark.parametrize(
    "latex",
    [
        r"\kappa_q \sqrt{\mu_q}",
        r"\left[\sqrt{\lambda / \nu} - \lambda - n\right]_+",
        r"\operatorname{Var}[R - 1] = \sum_l s_l^2 J_{k,l}^\mathsf{T} J_{k,l} / z_k^2",
    ],
)
def test_formulas_become_mathml(mathml: Callable[[str], str], latex: str):
    assert mathml(latex).startswith("<math ")


@pytest.mark.parametrize("latex", [r"\kapa_q", r"\frac{a}{b", r"a & b", r"\sqrt", "x^"])
def test_what_is_no_formula_is_refused(mathml: Callable[[str], str], latex: str):
    with pytest.raises(ValueError, match="no formula"):
        mathml(latex)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir"]
    done = subprocess.run([*words, str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_every_formula_of_the_pages_is_mathml(site: Path):
    """As many as the sources have, and no dollar is left over outside of code."""
    code = re.compile(r"^```.*?^```|``[^\n]*?``|`[^`]+`", re.MULTILINE | re.DOTALL)
    formula = re.compile(r"\$\$.+?\$\$|\$[^$\n]+(?:\n[^$\n]+)?\$", re.DOTALL)
    total = 0
    for source in DOCS.rglob("*.md"):
        built = (site / source.relative_to(DOCS).with_suffix(".html")).read_text()
        written = len(formula.findall(code.sub("", source.read_text())))
        assert built.count("<math ") == written, source
        assert "arithmatex" not in built
        total += written
    assert total > 100


@pytest.mark.slow
def test_built_pages_load_nothing_from_other_hosts(site: Path):
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|img|link|iframe)\b[^>]*(?:src|href)=\"([^\"]+)", page.read_text()
        )
        assert [each for each in loaded if re.match(r"(https?:)?//", each)] == [], page


@pytest.mark.slow
def test_pages_are_searched_from_the_disk(site: Path, tmp_path: Path):
    """Where browsers refuse workers (`docs/iframe-worker.js`) and requests."""
    if (binary := chromium_path()) is None:
        pytest.skip("no chromium on the PATH")
    look_up = """(() => {
      const field = document.querySelector("input[name=query]");
      field.focus();
      field.value = "jammer";
      field.dispatchEvent(new KeyboardEvent("keyup", { bubbles: true }));
      return document.querySelectorAll(".md-search-result__item").length;
    })()"""
    with Chromium(binary, tmp_path / "profile") as browser:
        browser.open((site / "tutorials" / "fuse.html").as_uri())
        end = time.monotonic() + 30
        while not (found := browser.evaluate(look_up)) and time.monotonic() < end:
            time.sleep(0.5)
        assert found > 0
        asked = {event["request"]["url"] for event in browser.said("Network.requestWillBeSent")}
    assert {url for url in asked if not url.startswith(("file:", "data:"))} == set()


def test_links_outside_of_the_docs_lead_somewhere():
    """Within docs/ mkdocs checks them, anchors too."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob(".github/**/*.md")]
    pages += [
        page for folder in ("checkpoints", "experiments") for page in (ROOT / folder).rglob("*.md")
    ]
    assert len(pages) > 10
    dead = {}
    for page in pages:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            path, _, anchor = link.partition("#")
            if "://" in link or link.startswith("mailto:"):
                continue
            target = page.parent / path if path else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                dead[f"{page.relative_to(ROOT)}: {link}"] = target
    assert dead == {}


def anchors(page: Path) -> set[str]:
    """Return the ids that headings have on GitHub and on the built pages."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_tests_that_the_errata_name_are_there():
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", (DOCS / "errata.md").read_text())
    assert len(named) >= 10
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(), test


def test_the_extras_of_the_installation_page_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    table = (DOCS / "installation.md").read_text().partition("| extra |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines()[2:]]
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == set(project["optional-dependencies"])


def test_methods_that_the_page_for_newcomers_maps_are_there():
    page = (DOCS / "coming_from.md").read_text()
    ours = re.findall(r"`--(?:method|rules) '?(\w+)", page)
    assert len(ours) > 5
    assert set(ours) <= METHODS.keys()


def test_every_tutorial_has_its_figure(monkeypatch: pytest.MonkeyPatch):
    """Those that take no compiling are drawn, so that they follow the page's code."""
    monkeypatch.syspath_prepend(str(DOCS / "tutorials"))
    figures = import_module("figures").FIGURES
    pages = {page.stem: page.read_text() for page in (DOCS / "tutorials").glob("*.md")}
    assert figures.keys() == pages.keys()
    for name, page in pages.items():
        assert f"]({name}.svg)" in page, name
        assert (DOCS / "tutorials" / f"{name}.svg").stat().st_size < 100_000
    for name in ("own_model_and_data", "protect", "send_a_llama", "sweep_on_tpu"):
        assert figures[name]().axes
