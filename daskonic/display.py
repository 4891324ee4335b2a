"""HTML for notebooks: small cards that take the page's own colours, light or dark. No scripts, everything escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

__all__ = ["bar", "card", "shares", "table"]

LINE = "rgba(128,128,128,.35)"
CARD = (
    f"display:inline-block;max-width:56em;border:1px solid {LINE};border-radius:6px;"
    "padding:.5em .9em .6em;margin:.2em 0;font-size:13px;line-height:1.5;color:inherit"
)
CELL = (
    "padding:.05em 1em .05em 0;text-align:left;vertical-align:top;border:none;background:none;color:inherit"
)
FAINT = "opacity:.65"
COLOURS = ("#3b8ec2", "#e0912f", "#2a9d78", "#b565a7", "#c4553d", "#8a8a3a", "#6f7fd0", "#7d7d7d")
"""Of middle brightness, so that they are seen on white and on black, and told apart by the colour-blind."""

MARKS = {"✓": "#2a9d78", "!": "#e0912f", "✗": "#c4553d"}
"""What a name may begin with, and its colour."""


def card(title: str, about: str, *parts: str) -> str:
    """A frame with a heading around pieces of HTML.

    Parameters
    ----------
    title, about : str
        Plain text: what it is, and the most important fact of it.
    *parts : str
        HTML, as :func:`table`, :func:`bar` and :func:`shares` make it; empty ones are left out.
    """
    head = f"<strong>{escape(title)}</strong> <span style='{FAINT}'>{escape(about)}</span>"
    inner = "".join(f"<div style='margin-top:.3em'>{part}</div>" for part in parts if part)
    return f"<div style='{CARD}'><div>{head}</div>{inner}</div>"


def table(rows: Iterable[tuple[object, ...]], header: tuple[str, ...] = ()) -> str:
    """Rows of plain values; the first of each row is its name. Rows whose last value is empty are left out."""
    lines = ["".join(f"<th style='{CELL};{FAINT};font-weight:normal'>{escape(h)}</th>" for h in header)]
    for row in rows:
        if row[-1] == "":
            continue
        name, *values = (escape(str(value)) for value in row)
        cells = "".join(f"<td style='{CELL}'>{value}</td>" for value in values)
        how = f"color:{MARKS[name[0]]}" if name[:1] in MARKS else FAINT
        style = CELL if header else f"{CELL};{how};white-space:nowrap"
        lines.append(f"<td style='{style}'>{name}</td>{cells}")
    body = "".join(f"<tr style='background:none'>{line}</tr>" for line in lines if line)
    return (
        f"<table style='border-collapse:collapse;margin:0;font-size:inherit'>{body}</table>" if body else ""
    )


def bar(done: float, text: str) -> str:
    """How far something is, between 0 and 1, and a line of text beside it."""
    percent = 100 * min(max(done, 0.0), 1.0)
    return (
        f"<div style='display:flex;align-items:center;gap:.8em'>"
        f"<div style='flex:0 0 16em;height:.7em;border-radius:4px;overflow:hidden;background:{LINE}'>"
        f"<div style='width:{percent:.1f}%;height:100%;background:{COLOURS[0]}'></div></div>"
        f"<span>{escape(text)}</span></div>"
    )


def shares(parts: Mapping[str, float], among: Sequence[str]) -> str:
    """Shares of a whole as one coloured strip with its legend; those below half a percent are left out.

    Parameters
    ----------
    parts : mapping of str to float
    among : sequence of str
        All names that there may be, so that each always has the same colour.
    """
    total = sum(parts.values())
    if total <= 0:
        return ""
    shown = [
        (name, value / total, COLOURS[among.index(name) % len(COLOURS)])
        for name, value in parts.items()
        if value >= 0.005 * total
    ]
    strip = "".join(f"<div style='flex:{share:.4f};background:{colour}'></div>" for _, share, colour in shown)
    legend = "".join(
        f"<span style='margin-right:1em;white-space:nowrap'>"
        f"<span style='display:inline-block;width:.7em;height:.7em;border-radius:2px;background:{colour}'></span> "
        f"{escape(name)} {share:.0%}</span>"
        for name, share, colour in shown
    )
    return (
        "<div style='display:flex;height:.7em;border-radius:4px;overflow:hidden;width:28em;max-width:100%'>"
        f"{strip}</div><div style='max-width:40em'>{legend}</div>"
    )
