"""A picture of the report: drawn once for light and once for dark pages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure

from mmmoe.report.theme import DARK, LIGHT, Theme, png, styled


@dataclass(frozen=True)
class Plot:
    """One picture of the report in both themes."""

    name: str
    """File name without suffix."""
    section: str
    """training, experts, vision or scores."""
    title: str
    caption: str
    """Tells what to look at."""
    light: bytes
    dark: bytes


def picture(name: str, section: str, title: str, caption: str, draw: Callable[[Theme], Figure]) -> Plot:
    """Returns what a function draws, in both themes."""
    images = []
    for theme in (LIGHT, DARK):
        with styled(theme):
            images.append(png(draw(theme)))
    return Plot(name, section, title, caption, *images)
