"""A bar chart as SVG, written by hand: readable on light and dark ground. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

from bench.proxy.figures import shown

_WIDTH: Final = 860
_LABEL: Final = 190
_VALUE: Final = 90
_ROW: Final = 22
_BAR: Final = 14
_TITLE: Final = 34
_GAP: Final = 18
_STYLE: Final = """
text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #24292f }
.title { font-weight: 600 }
.own { fill: #0969da } .base { fill: #57606a } .other { fill: #afb8c1 }
.strong { font-weight: 600 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .own { fill: #58a6ff } .base { fill: #8b949e } .other { fill: #484f58 }
}
"""


@dataclass(frozen=True, slots=True)
class Panel:
    """Bars of one measure, from top to bottom; shorter is better."""

    title: str
    unit: str
    bars: Sequence[tuple[str, float]]


def draw(panels: Sequence[Panel], *, own: Collection[str], base: str = "nginx") -> str:
    """The chart. Those in ``own`` and ``base`` stand out from the other bars."""
    kinds = {base: "base", **dict.fromkeys(own, "own")}
    parts: list[str] = []
    top = 0
    for panel in panels:
        parts.append(
            f'<text class="title" x="0" y="{top + 20}">{escape(panel.title)} '
            f"({escape(panel.unit)}; less is better)</text>"
        )
        top += _TITLE
        most = max((value for _, value in panel.bars), default=0) or 1
        for name, value in panel.bars:
            parts += _bar(name, value, most, top, kinds.get(name, "other"))
            top += _ROW
        top += _GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}" '
        f'width="{_WIDTH}" height="{top}" role="img">\n'
        f"<title>The gateway beside other proxies</title>\n<style>{_STYLE}</style>\n"
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _bar(name: str, value: float, most: float, top: int, kind: str) -> list[str]:
    length = max(1.0, value / most * (_WIDTH - _LABEL - _VALUE))
    middle = top + _BAR - 2
    strong = ' class="strong"' if kind == "own" else ""
    return [
        f'<text{strong} x="{_LABEL - 8}" y="{middle}" text-anchor="end">{escape(name)}</text>',
        f'<rect class="{kind}" x="{_LABEL}" y="{top}" width="{length:.1f}" height="{_BAR}" '
        'rx="2"/>',
        f'<text{strong} x="{_LABEL + length + 6:.1f}" y="{middle}">{shown(value)}</text>',
    ]
