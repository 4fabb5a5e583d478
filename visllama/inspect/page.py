"""Write the page `inspect.html`: the tables, samples token by token, and images as the model sees them.

One file that opens offline. What comes from data is escaped, and the page forbids itself scripts and addresses.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from visllama.files import write_whole
from visllama.images.inline import data_address
from visllama.inspect.reading import Shown, Token, folded
from visllama.inspect.tables import HEADERS, Bin, SourceCounts, columns_note

_MOST_IN_A_ROW = 80
"""The middle of a segment with more tokens is folded; a click unfolds it."""
_KEY_SEGMENTS = ("prompt", "response", "image")
"""The segments that the key of the colours explains."""
_BAR_PX = 52
_HEIGHT_PX = 120
_LABEL_PX = 34
_HEAD = """<!doctype html><html lang=en><meta charset=utf-8>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name=viewport content="width=device-width">"""
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;padding:0 1rem;max-width:70rem;color:#222;background:#fff}
table{border-collapse:collapse}
th,td{padding:.2rem .7rem;border-bottom:1px solid #ddd;text-align:right}
th:first-child,td:first-child{text-align:left}
article{margin:1rem 0;padding:.7rem 1rem;border:1px solid #ddd;border-radius:6px}
article h3{margin:0;font-size:15px;overflow-wrap:anywhere}
img{width:160px;height:160px;object-fit:contain;image-rendering:pixelated;margin:.3rem .3rem .3rem 0}
.tokens{font:13px/2 ui-monospace,monospace;overflow-wrap:anywhere}
.tokens span,.key span{padding:.1rem .25rem;margin:0 .1rem;border-radius:3px;background:#eee;color:#555}
.tokens .response,.tokens .end,.key .response{background:#d2f0d2;color:#0a4d0a}
.tokens .end{outline:1px solid #0a4d0a}
.tokens .boi,.tokens .image,.tokens .eoi,.key .image{background:#d5e4fb;color:#123f86}
details,summary{display:inline}
summary{cursor:pointer;text-decoration:underline}
.masked{color:#a00}
small,p,summary{color:#666}
rect{fill:#5b8dd6}rect.cut{fill:#c0392b}text{font:11px system-ui,sans-serif;fill:#444;text-anchor:middle}
"""


def write_page(
    path: Path,
    command: str,
    lines: Sequence[str],
    counts: Sequence[SourceCounts],
    most: int,
    bins: Sequence[Bin],
    shown: Sequence[Shown],
) -> None:
    """Write the inspection of batches as one HTML file, whole or not at all.

    Args:
        path: The path of the HTML file; a file that is there is replaced.
        command: The command that was typed, as the page shows it.
        lines: Lines of text about the steps, which stand at the top. All text is escaped here.
        counts: The counts of each source, as `count_sources` returns them.
        most: The value of `stage.max_text_tokens`, which a note on the page names.
        bins: The histogram of text lengths, as `histogram` returns it.
        shown: The samples that are shown one by one, with an image for each entry of their `pixel_values`.

    Raises:
        WriteFailed: If the file cannot be written.
    """
    # All that comes from data or the command line is escaped here, or in the functions below.
    sentences = "<br>".join(html.escape(line) for line in lines)
    samples = "".join(_sample(each) for each in shown)
    key = "".join(f"<span class={segment}>{segment}</span>" for segment in _KEY_SEGMENTS)

    body = (
        f"<h1>What training would see</h1><p><code>{html.escape(command)}</code></p><p>{sentences}</p>{_table(counts)}"
        f"<p>{html.escape(columns_note(most))}</p><h2>Text tokens of a sample</h2>{_svg(bins)}"
        f"<h2>Samples</h2><p class=key>{key} a token's id, segment and label stand on it</p>{samples}"
    )
    page = f"{_HEAD}<title>{html.escape(command)}</title><style>{_STYLE}</style>{body}</html>"
    write_whole(path, page)


def _table(counts: Sequence[SourceCounts]) -> str:
    head = "".join(f"<th>{header}</th>" for header in HEADERS)
    rows = []
    for source in counts:
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in source.cells())
        rows.append(f"<tr>{cells}</tr>")
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _sample(shown: Shown) -> str:
    pictures = []
    for number, pixels in enumerate(shown.sample.pixel_values, start=1):
        pictures.append(f'<img src="{_picture(pixels)}" alt="image {number}">')

    css_class = " class=masked" if shown.sample.fault else ""
    tokens = "".join(_spans(token) for token in folded(shown.tokens, _MOST_IN_A_ROW))
    return (
        f"<article><h3>{html.escape(shown.key)}</h3><small{css_class}>{html.escape(shown.facts)}</small>"
        f"<div>{''.join(pictures)}</div><div class=tokens>{tokens}</div></article>"
    )


def _spans(token: Token | list[Token]) -> str:
    """Return the HTML of a token, or of a list of tokens as an element that a click unfolds."""
    if not isinstance(token, Token):
        spans = "".join(_spans(each) for each in token)
        return f"<details><summary>{len(token)} more</summary>{spans}</details>"

    label = "not learned" if token.label is None else f"label {token.label}"
    title = f"id {token.id}, {token.segment}, {label}"
    return f'<span class={token.segment} title="{title}">{html.escape(token.name)}</span> '


def _picture(pixels: UInt8[Tensor, "3 H W"]) -> str:
    """Return the very pixels that the model sees as the address of a PNG."""
    # As PNG, which loses nothing, and without a scale: the browser enlarges it.
    channels_last = pixels.permute(1, 2, 0).numpy()
    return data_address(Image.fromarray(channels_last))


def _svg(bins: Sequence[Bin]) -> str:
    """Return a histogram as SVG: a bar for each bin, its count above it and its lengths below it."""
    highest = max((b.count for b in bins), default=1)

    # Red bars are of texts that are cut.
    bars = []
    for place, b in enumerate(bins):
        bar_height = b.count * _HEIGHT_PX / highest
        x = place * _BAR_PX
        middle = x + _BAR_PX / 2
        # Half of the label's height is left above the highest bar for its count.
        y = _LABEL_PX / 2 + _HEIGHT_PX - bar_height
        css_class = " class=cut" if b.is_cut else ""

        bars.append(
            f'<rect{css_class} x="{x + 2}" y="{y:.1f}" width="{_BAR_PX - 4}" height="{bar_height:.1f}"/>'
            f'<text x="{middle}" y="{y - 3:.1f}">{b.count:,}</text>'
            f'<text x="{middle}" y="{_HEIGHT_PX + _LABEL_PX - 3}">{b.label}</text>'
        )

    width = max(1, len(bins)) * _BAR_PX
    height = _HEIGHT_PX + _LABEL_PX
    return f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}">{"".join(bars)}</svg>'
