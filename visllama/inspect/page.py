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
        lines: Plain lines of text about the steps, shown at the top of the page. HTML signs in them are escaped.
        counts: The counts of each source, as `count_sources` returns them.
        most: The value of `stage.max_text_tokens`, which a note on the page names.
        bins: The histogram of text lengths, as `histogram` returns it.
        shown: The samples that are shown one by one, with an image for each entry of their `pixel_values`.

    Raises:
        WriteFailed: If the file cannot be written.
    """
    # All that comes from data or the command line is escaped here, or in the functions below.
    title = html.escape(command)
    sentences = "<br>".join(html.escape(line) for line in lines)
    note = html.escape(columns_note(most))
    key = "".join(f"<span class={segment}>{segment}</span>" for segment in _KEY_SEGMENTS)
    samples = "".join(_sample(each) for each in shown)

    sections = [
        f"<h1>What training would see</h1><p><code>{title}</code></p><p>{sentences}</p>",
        f"{_table(counts)}<p>{note}</p>",
        f"<h2>Text tokens of a sample</h2>{_svg(bins)}",
        f"<h2>Samples</h2><p class=key>{key} a token's id, segment and label stand on it</p>{samples}",
    ]
    body = "".join(sections)
    page = f"{_HEAD}<title>{title}</title><style>{_STYLE}</style>{body}</html>"
    write_whole(path, page)


def _table(counts: Sequence[SourceCounts]) -> str:
    """Return the HTML of the table of sources: `HEADERS` above, and a row of counts for each source."""
    head = "".join(f"<th>{header}</th>" for header in HEADERS)
    rows = ""
    for source in counts:
        texts = [html.escape(cell) for cell in source.cells()]
        cells = "".join(f"<td>{text}</td>" for text in texts)
        rows += f"<tr>{cells}</tr>"
    return f"<table><tr>{head}</tr>{rows}</table>"


def _sample(shown: Shown) -> str:
    """Return the HTML of a sample: its key, the facts about it, its images and its tokens."""
    heading = html.escape(shown.key)
    facts = html.escape(shown.facts)
    css_class = " class=masked" if shown.sample.fault else ""

    pictures = []
    for number, pixels in enumerate(shown.sample.pixel_values, start=1):
        address = _picture(pixels)
        pictures.append(f'<img src="{address}" alt="image {number}">')
    images = "".join(pictures)

    shown_tokens = folded(shown.tokens, _MOST_IN_A_ROW)
    tokens = "".join(_spans(token) for token in shown_tokens)
    return (
        f"<article><h3>{heading}</h3><small{css_class}>{facts}</small>"
        f"<div>{images}</div><div class=tokens>{tokens}</div></article>"
    )


def _spans(token: Token | list[Token]) -> str:
    """Return the HTML of a token, or of a list of tokens as an element that a click unfolds."""
    if isinstance(token, Token):
        return _span(token)

    spans = "".join(_span(each) for each in token)
    num_folded = len(token)
    return f"<details><summary>{num_folded} more</summary>{spans}</details>"


def _span(token: Token) -> str:
    name = html.escape(token.name)
    segment = token.segment
    label = "not learned" if token.label is None else f"label {token.label}"
    title = f"id {token.id}, {segment}, {label}"
    return f'<span class={segment} title="{title}">{name}</span> '


def _picture(pixels: UInt8[Tensor, "3 H W"]) -> str:
    """Return the very pixels that the model sees as the address of a PNG."""
    # As PNG, which loses nothing, and without a scale: the browser enlarges it.
    channels_last = pixels.permute(1, 2, 0).numpy()
    image = Image.fromarray(channels_last)
    return data_address(image)


def _svg(bins: Sequence[Bin]) -> str:
    """Return a histogram as SVG: a bar for each bin, its count above it and its lengths below it."""
    highest = max((b.count for b in bins), default=1)
    bars = ""
    for place, b in enumerate(bins):
        height_px = b.count * _HEIGHT_PX / highest
        bars += _svg_bar(b, place * _BAR_PX, height_px)

    width = max(1, len(bins)) * _BAR_PX
    height = _HEIGHT_PX + _LABEL_PX
    return f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}">{bars}</svg>'


def _svg_bar(b: Bin, left: int, height: float) -> str:
    """Return one bar of the histogram as SVG, with its count and its lengths.

    Args:
        b: The bin.
        left: The place of the bar's left edge, in pixels.
        height: The height of the bar, in pixels.
    """
    bar_x = left + 2
    bar_width = _BAR_PX - 4
    middle = left + _BAR_PX / 2
    # Half of the label's height is left above the highest bar for its count.
    bar_y = _LABEL_PX / 2 + _HEIGHT_PX - height
    count_y = bar_y - 3
    label_y = _HEIGHT_PX + _LABEL_PX - 3

    # Red bars are of texts that are cut.
    css_class = " class=cut" if b.is_cut else ""
    return (
        f'<rect{css_class} x="{bar_x}" y="{bar_y:.1f}" width="{bar_width}" height="{height:.1f}"/>'
        f'<text x="{middle}" y="{count_y:.1f}">{b.count:,}</text>'
        f'<text x="{middle}" y="{label_y}">{b.label}</text>'
    )
