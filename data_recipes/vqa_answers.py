"""VQAv2's answers: their normal form, the vocabulary that is learned, and how right an answer is."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

MIN_QUESTIONS = 9
"""An answer is learned if it is the most frequent one of so many questions; of train and val 3 129 are."""

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
_ARTICLES = ("a", "an", "the")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've
    o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
    someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
    there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
    when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
    wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""


def _spellings(word: str) -> Iterable[str]:
    """A contraction with one or all of its apostrophes left out."""
    yield word.replace("'", "")
    for match in re.finditer("'", word):
        yield word[: match.start()] + word[match.end() :]


_SPELLED = {spelling: word for word in _CONTRACTIONS.split() for spelling in _spellings(word)}


def normalise(answer: str) -> str:
    """The normal form in which answers are compared: as in the VQA evaluation (visualqa.org/evaluation.html).

    Punctuation goes, lower case, number words become digits, articles go, contractions get their apostrophe.
    """
    between_digits = re.search(r"\d,\d", answer) is not None
    text = answer
    for mark in _PUNCTUATION:
        # A mark inside a word separates two words; beside a blank, or in an answer with a thousands comma, it is noise.
        noise = between_digits or f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if noise else " ")
    text = re.sub(r"\.(?!\d)", "", text)
    words = (_DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(_SPELLED.get(word, word) for word in words if word not in _ARTICLES)


def vocabulary(most_frequent: Iterable[str]) -> list[str]:
    """The answers that are learned, the most frequent first, then in alphabetical order.

    One of the published 3 129 is empty: the letter "a", whose normal form it is.

    Args:
        most_frequent: every question's most frequent answer.
    """
    counts = Counter(map(normalise, most_frequent))
    frequent = [answer for answer, count in counts.items() if count >= MIN_QUESTIONS]
    return sorted(frequent, key=lambda answer: (-counts[answer], answer))


def scores(answers: Iterable[str]) -> dict[str, float]:
    """How right each of ten people's answers is: min(1, 0.3 × how many gave it).

    That is the evaluation's min(1, how many of the others / 3), averaged over leaving out each of the ten in turn.
    """
    counts: Mapping[str, int] = Counter(map(normalise, answers))
    return {answer: min(10, 3 * count) / 10 for answer, count in counts.items()}
