"""Prose of the Debian administrator's handbook, for quantization.py: the text of its sections."""

from __future__ import annotations

import gzip
import html.parser
import re
import subprocess
from pathlib import Path
from typing import Any

__all__ = ["sections"]


class Text(html.parser.HTMLParser):
    """The paragraphs of a page: p, or div of the class para."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[bool] = []
        self.parts: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        """A paragraph may begin."""
        if tag in ("p", "div"):
            self.open.append(tag == "p" or dict(attrs).get("class") == "para")

    def handle_endtag(self, tag: str) -> None:
        """A paragraph may end."""
        if tag in ("p", "div") and self.open and self.open.pop():
            self.parts.append("\n\n")

    def handle_data(self, data: str) -> None:
        """Text of a paragraph."""
        if self.open and self.open[-1]:
            self.parts.append(re.sub(r"\s+", " ", data))


def sections(deb: Path | None, folder: Path) -> list[str]:
    """Return the text of the English handbook's longer sections."""
    target = folder / "handbook"
    if not target.is_dir():
        if deb is None:
            subprocess.run(["apt-get", "download", "debian-handbook"], cwd=folder, check=True)
            deb = next(folder.glob("debian-handbook*.deb"))
        subprocess.run(["dpkg-deb", "-x", str(deb), str(target)], check=True)
    texts = []
    for page in sorted(target.rglob("en-US/*.html*")):
        raw = page.read_bytes()
        parser = Text()
        parser.feed((gzip.decompress(raw) if page.suffix == ".gz" else raw).decode("utf-8"))
        texts.append("".join(parser.parts))
    return [text for text in texts if len(text) > 3000]
