"""Draws ``architecture.svg``: ``python docs/assets/architecture.py > docs/assets/architecture.svg``."""

COLOURS = {"text": "#3b7dd8", "image": "#2f9e6e", "audio": "#c2683a", "yours": "#8257c2"}
SHARED, LINE = "#d9a514", "#8a8f98"
ROWS = {
    "text": ("“three red bells”", "embedding"),
    "image": ("pixels", "patches"),
    "audio": ("16 kHz samples", "convolutions"),
    "yours": ("anything", "one file"),
}
WIDTH, HEIGHT = 980, 430


def box(x: float, y: float, width: float, height: float, colour: str, lines: list[str], *, dashed: bool = False) -> str:
    """A rounded box with centred lines of text."""
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    shape = (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{colour}" fill-opacity=".16"'
        f' stroke="{colour}" stroke-width="1.6"{dash}/>'
    )
    first = y + height / 2 - 9 * (len(lines) - 1) + 5
    centre = f'x="{x + width / 2}" text-anchor="middle"'
    words = "".join(
        f'<text {centre} y="{first + 18 * row}" class="{"name" if row == 0 else "note"}">{line}</text>'
        for row, line in enumerate(lines)
    )
    return shape + words


def arrow(x0: float, y0: float, x1: float, y1: float) -> str:
    """A line with a head at its end."""
    return f'<path d="M{x0} {y0} L{x1} {y1}" stroke="{LINE}" stroke-width="1.5" marker-end="url(#head)"/>'


def draw() -> str:
    """The figure as SVG."""
    parts = []
    for row, (name, (raw, how)) in enumerate(ROWS.items()):
        y, colour, dashed = 52 + 92 * row, COLOURS[name], name == "yours"
        title = "your modality" if dashed else name
        parts += [
            box(12, y, 128, 60, colour, [title, raw], dashed=dashed),
            arrow(140, y + 30, 166, y + 30),
            box(170, y, 118, 60, colour, ["adapter", how], dashed=dashed),
            arrow(288, y + 30, 326, y + 30),
            box(614, y, 104, 60, colour, ["FFN", title], dashed=dashed),
            arrow(576, y + 30, 610, y + 30),
        ]
    parts += [
        '<rect x="316" y="22" width="420" height="386" rx="12" fill="none" stroke="#8a8f98" stroke-dasharray="3 4"/>',
        '<text x="526" y="15" text-anchor="middle" class="note">fusion encoder: 40 such blocks in the 4B model</text>',
        box(330, 52, 66, 336, LINE, ["tokens", "of all", "views,", "packed"]),
        arrow(396, 220, 426, 220),
        box(430, 52, 146, 336, SHARED, ["self-attention", "shared by all", "modalities"]),
        *(
            piece
            for y, lines in (
                (52, ["contrast", "align modalities"]),
                (144, ["denoising", "predict hidden tokens"]),
                (236, ["task heads", "classes, boxes, masks …"]),
                (328, ["embeddings", "search anything"]),
            )
            for piece in (arrow(736, y + 30, 768, y + 30), box(772, y, 196, 60, SHARED, lines))
        ),
    ]
    style = (
        "text{font-family:system-ui,sans-serif;fill:#1f2328}.name{font-size:15px;font-weight:600}"
        ".note{font-size:12.5px;fill:#59636e}@media (prefers-color-scheme:dark){text{fill:#e6edf3}.note{fill:#9da7b3}}"
    )
    head = (
        '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{LINE}"/></marker>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        ' aria-label="An adapter per modality, self-attention shared by all, a feed-forward network per modality">'
        f"<style>{style}</style><defs>{head}</defs>{''.join(parts)}</svg>"
    )


if __name__ == "__main__":
    print(draw())
