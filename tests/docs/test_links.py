"""Every link of the documentation leads to what is there."""

import re

import pytest

from tests.conftest import ROOT
from tests.docs import pages

PAGES = [*pages.paths(), "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"]


def _anchors(text):
    """The names of headings, and of what mkdocstrings puts in."""
    headings = re.findall(r"^#+ +(.+)$", text, re.M)
    kept = [re.sub(r"[^\w\- ]", "", h).strip().lower() for h in headings]
    names = {heading.replace(" ", "-") for heading in kept}
    return names | set(re.findall(r"^::: (\S+)$", text, re.M))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    here = ROOT / page
    for link in pages.links(pages.read(page)):
        path, _, anchor = link.partition("#")
        if "://" in link or link.startswith("mailto:"):
            continue
        target = (here.parent / path).resolve() if path else here
        assert target.is_file(), link
        if anchor and target.suffix == ".md":
            assert anchor in _anchors(target.read_text("utf-8")), link
