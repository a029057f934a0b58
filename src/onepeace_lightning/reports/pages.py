"""Building blocks of self-contained HTML pages: everything shown is inside, nothing fetched from elsewhere.

They can be read on a telephone and on a wide screen, in light and in dark.
"""

from collections.abc import Mapping, Sequence
from html import escape

RIGHT, WRONG, INK = "#1a9850", "#d73027", "#222222"
"""Colours of right and wrong answers and of text, in images; pages have their own for dark screens."""


def page(title: str, introduction: str, body: str) -> str:
    """A whole page.

    Args:
        title: plain text.
        introduction: HTML of the paragraph under the heading.
        body: HTML of all else, such as ``answer_row``.
    """
    return _PAGE.replace("{{title}}", escape(title)).replace("{{introduction}}", introduction).replace("{{body}}", body)


def answer_row(asked: str, figures: Sequence[str]) -> str:
    """What was asked, set apart, and what was found in figures beside it, or below it on a narrow screen; all HTML."""
    return f'<div class="query"><div class="asked">{asked}</div><div class="grid">{"".join(figures)}</div></div>'


def grid(figures: Sequence[str], *, wide: bool = False) -> str:
    """Figures in columns of one width; HTML. ``wide`` ones hold several images."""
    return f'<div class="grid{" wide" if wide else ""}">{"".join(figures)}</div>'


def figure(content: str, caption: str, kind: str = "") -> str:
    """Something found, and the words under it; both are HTML. ``kind`` is empty, ``right`` or ``wrong``."""
    return f'<figure class="{kind}"><div class="shown">{content}</div><figcaption>{caption}</figcaption></figure>'


def in_a_row(contents: Sequence[str], titles: Sequence[str]) -> str:
    """Things side by side at any width, each under its title; contents are HTML, titles plain text."""
    cells = [
        f"<div>{f'<small>{escape(title)}</small>' if title else ''}{content}</div>"
        for content, title in zip(contents, titles, strict=True)
    ]
    return f'<div class="row" style="--columns: {len(cells)}">{"".join(cells)}</div>'


def legend(colours: Mapping[str, str]) -> str:
    """Names with the colours that stand for them, as CSS writes them."""
    chips = [f'<span><i style="background: {colour}"></i>{escape(name)}</span>' for name, colour in colours.items()]
    return f'<div class="legend">{"".join(chips)}</div>'


def facts(values: Mapping[str, str]) -> str:
    """Names and values side by side; plain text."""
    cells = [f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in values.items()]
    return f'<dl class="facts">{"".join(cells)}</dl>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table that scrolls within itself where it is wider than the screen; cells are HTML, a ``<td>`` or its content.

    Args:
        head: titles of the columns.
        rows: of as many cells; the first is the row's title.
        kind: CSS class.
    """
    titles = "".join(f"<th>{cell}</th>" for cell in head)
    lines = [
        f"<tr><th>{first}</th>{''.join(cell if cell.startswith('<td') else f'<td>{cell}</td>' for cell in rest)}</tr>"
        for first, *rest in rows
    ]
    return (
        f'<div class="scrolls" tabindex="0"><table class="{kind}"><thead><tr>{titles}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


_PAGE = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{{{title}}}}</title>
<style>
:root {{
  color-scheme: light dark;
  --ink: {INK}; --faint: #666666; --ground: #ffffff; --card: #f4f5f7; --line: #dfe2e6; --asked: #eaf1fb;
  --right: #15803d; --wrong: #c62828; --heat: 26, 110, 200;
}}
@media (prefers-color-scheme: dark) {{
  :root {{
    --ink: #e6e6e6; --faint: #a0a4aa; --ground: #16181b; --card: #22262b; --line: #363b42; --asked: #1d2b3f;
    --right: #4cc776; --wrong: #ff7b72; --heat: 90, 160, 250;
  }}
}}
* {{ box-sizing: border-box; }}
body {{
  font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--ground); max-width: 1320px;
  margin: 0 auto; padding: 1.5rem 1rem 4rem; overflow-wrap: anywhere;
}}
h1 {{ font-size: 1.5rem; margin: 0 0 .5rem; }}
h2 {{ font-size: 1.15rem; margin: 2.25rem 0 .75rem; }}
h3 {{ font-size: 1rem; margin: 1.5rem 0 .5rem; }}
p {{ max-width: 75ch; }}
ul {{ padding-left: 1.2rem; color: var(--faint); font-size: 13px; }}
small {{ color: var(--faint); display: block; }}
.query {{ display: grid; grid-template-columns: 250px minmax(0, 1fr); gap: 1rem; padding: 1rem 0; }}
.query + .query {{ border-top: 1px solid var(--line); }}
.asked {{ background: var(--asked); border-radius: 8px; padding: .75rem; align-self: start; min-width: 0; }}
.asked p {{ margin: 0 0 .5rem; }}
.asked > :last-child {{ margin-bottom: 0; }}
.asked img {{ max-height: 220px; }}
.grid {{ display: grid; gap: .75rem; align-content: start; }}
.grid {{ grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); }}
.grid.wide {{ grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); }}
.grid > figure:has(audio) {{ grid-column: span 2; }}
figure {{
  margin: 0; min-width: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px; overflow: hidden;
  display: flex; flex-direction: column;
}}
figure.right {{ border-top: 4px solid var(--right); }}
figure.wrong {{ border-top: 4px solid var(--wrong); }}
.right b {{ color: var(--right); }}
.wrong b {{ color: var(--wrong); }}
.shown {{ padding: .5rem .5rem 0; }}
.grid:not(.wide) .shown > img {{ aspect-ratio: 1; }}
.wide .shown img {{ max-height: 320px; }}
img {{ display: block; width: 100%; object-fit: contain; border-radius: 4px; }}
audio {{ display: block; width: 100%; min-width: 0; height: 40px; }}
blockquote {{ margin: 0; padding: .25rem; }}
figcaption {{ font-size: 13px; line-height: 1.35; padding: .5rem; }}
.cosine {{ color: var(--faint); white-space: nowrap; }}
.row {{ display: grid; grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); gap: .5rem; align-items: end; }}
.legend {{ display: flex; flex-wrap: wrap; gap: .25rem .75rem; margin-top: .5rem; }}
.legend i {{ display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .35em; }}
.facts {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); gap: .75rem; margin: 0; }}
.facts div {{ background: var(--card); border-radius: 8px; padding: .5rem .75rem; }}
dt {{ font-size: 13px; color: var(--faint); }}
dd {{ margin: 0; font-size: 1.05rem; font-variant-numeric: tabular-nums; }}
.scrolls {{ overflow: auto; max-height: 36rem; width: fit-content; max-width: 100%; }}
.scrolls {{ border: 1px solid var(--line); border-radius: 8px; }}
table {{ border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; overflow-wrap: normal; }}
th, td {{ padding: .3rem .6rem; text-align: right; max-width: 16rem; overflow-wrap: break-word; }}
thead th {{ max-width: 7rem; }}
th:first-child {{ text-align: left; position: sticky; left: 0; background: var(--card); max-width: 10rem; }}
thead th {{ position: sticky; top: 0; background: var(--card); }}
thead th:first-child {{ z-index: 1; }}
td.heat {{ background: rgba(var(--heat), calc(var(--part) * .75)); text-align: center; min-width: 2.4rem; }}
td.true {{ outline: 2px solid var(--line); outline-offset: -2px; }}
@media (max-width: 700px) {{
  .query {{ grid-template-columns: minmax(0, 1fr); }}
  .grid:not(.wide) {{ grid-template-columns: repeat(2, minmax(0, 1fr)); }}
}}
</style>
</head>
<body>
<h1>{{{{title}}}}</h1>
<p>{{{{introduction}}}}</p>
{{{{body}}}}
</body>
</html>
"""
