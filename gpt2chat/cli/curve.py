"""The loss curve: in the terminal with braille dots, and as an SVG file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 60, 8  # terminal cells; a braille cell has 2 x 4 dots
# Bit of each dot in a braille cell, by column and row (Unicode 1.1, U+2800).
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))


def series(history: Sequence[dict[str, Any]]) -> tuple[Points, Points]:
    """Return (step, loss) of training and of validation."""
    train = [(row["step"], row["loss"]) for row in history if row.get("loss") is not None]
    val = [(row["step"], row["validation_loss"]) for row in history if row.get("validation_loss") is not None]
    return train, val


def braille(points: Points, width: int = WIDTH, height: int = HEIGHT) -> list[str]:
    """Draw a curve; the first and last line carry its highest and lowest value."""
    columns: dict[int, list[float]] = {}
    first, last = points[0][0], points[-1][0]
    for x, y in points:
        columns.setdefault(round((x - first) / max(1, last - first) * (2 * width - 1)), []).append(y)
    means = {column: sum(ys) / len(ys) for column, ys in columns.items()}
    low, high = min(means.values()), max(means.values())
    cells = [[0] * width for _ in range(height)]
    for column, mean in means.items():
        row = round((high - mean) / max(1e-9, high - low) * (4 * height - 1))
        cells[row // 4][column // 2] |= DOTS[column % 2][row % 4]
    lines = ["".join(chr(0x2800 + cell) for cell in row) for row in cells]
    labels = [f"{high:7.3f} ", *[" " * 8] * (height - 2), f"{low:7.3f} "]
    return [label + line for label, line in zip(labels, lines, strict=True)]


def svg(train: Points, validation: Points) -> str:
    """Return a self-contained SVG with both curves, axes and labels."""
    width, height, left, bottom = 720, 360, 56, 36
    everything = [*train, *validation]
    xs, ys = [x for x, _ in everything], [y for _, y in everything]
    low, high, first, last = min(ys), max(ys), min(xs), max(xs)

    def place(x: float, y: float) -> str:
        px = left + (x - first) / max(1e-9, last - first) * (width - left - 16)
        py = 16 + (high - y) / max(1e-9, high - low) * (height - bottom - 16)
        return f"{px:.1f},{py:.1f}"

    def line(points: Points, colour: str) -> str:
        path = " ".join(place(x, y) for x, y in points)
        return f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>'

    legend = ' <tspan fill="#d4380d">validation</tspan>' if validation else ""
    text = 'font-family="sans-serif" font-size="13" fill="#444"'
    ticks = [low + (high - low) * part / 4 for part in range(5)]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="loss curve">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        *(
            f'<text {text} x="{left - 8}" y="{float(place(first, tick).split(",")[1]) + 4:.1f}" '
            f'text-anchor="end">{tick:.2f}</text>'
            for tick in ticks
        ),
        f'<text {text} x="{left}" y="{height - 10}">step {first:g}</text>',
        f'<text {text} x="{width - 16}" y="{height - 10}" text-anchor="end">step {last:g}</text>',
        f'<text {text} x="{width - 16}" y="20" text-anchor="end">loss in nats per token: '
        f'<tspan fill="#1f6feb">training</tspan>{legend}</text>',
        line(train, "#1f6feb"),
        line(validation, "#d4380d") if validation else "",
        "</svg>",
    ]
    return "\n".join(part for part in parts if part) + "\n"
