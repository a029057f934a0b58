"""Building blocks of self-contained HTML pages: everything shown is inside, nothing fetched from elsewhere."""

from html import escape

RIGHT, WRONG, INK, FAINT = "#1a9850", "#d73027", "#222222", "#777777"


def page(title: str, introduction: str, body: str) -> str:
    """A whole page.

    Args:
        title: plain text.
        introduction: HTML of the paragraph under the heading.
        body: HTML of all else, such as ``answer_row``.
    """
    return _PAGE.replace("{{title}}", escape(title)).replace("{{introduction}}", introduction).replace("{{body}}", body)


def answer_row(asked: str, figures: list[str]) -> str:
    """What was asked at the left, what was found in figures beside it; both are HTML."""
    return f'<div class="query"><div class="asked">{asked}</div>{"".join(figures)}</div>'


def grid(figures: list[str]) -> str:
    """Large figures side by side; HTML."""
    return f'<div class="query large">{"".join(figures)}</div>'


def figure(content: str, caption: str, kind: str = "") -> str:
    """Something found, and the words under it; both are HTML. ``kind`` is empty, ``right`` or ``wrong``."""
    return f'<figure class="{kind}">{content}<figcaption>{caption}</figcaption></figure>'


_PAGE = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{{{title}}}}</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; color: {INK}; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; }}
h2 {{ font-size: 1.1rem; margin-top: 2.5rem; }}
.query {{ display: flex; flex-wrap: wrap; gap: 14px; padding: 14px 0; border-top: 1px solid #e5e5e5; }}
.asked {{ width: 260px; }}
.asked p {{ margin: 0 0 8px; }}
audio {{ width: 100%; height: 36px; }}
.asked audio {{ width: 250px; }}
figure {{ width: 130px; margin: 0; overflow-wrap: anywhere; }}
img {{ width: 122px; height: 122px; object-fit: contain; border: 4px solid transparent; border-radius: 4px; }}
blockquote {{ margin: 0; padding: 8px; background: #f4f4f4; border-radius: 4px; }}
.large figure {{ width: auto; max-width: 500px; }}
.large img {{ width: auto; height: auto; }}
.large figcaption {{ width: 0; min-width: 100%; font-size: 13px; }}
.right img {{ border-color: {RIGHT}; }}
.wrong img {{ border-color: {WRONG}; }}
.right b {{ color: {RIGHT}; }}
.wrong b {{ color: {WRONG}; }}
figcaption {{ font-size: 12px; line-height: 1.3; }}
i {{ color: {FAINT}; white-space: nowrap; }}
</style>
</head>
<body>
<h1>{{{{title}}}}</h1>
<p>{{{{introduction}}}}</p>
{{{{body}}}}
</body>
</html>
"""
