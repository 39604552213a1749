"""The text of a chat reply, made ready to be judged.

Two steps, both free of any idea of what a refusal is.  `normalise` removes what makes equal
sentences look different (the list follows the `heretic` tool's detector): curly quotes, invisible
characters, thinking blocks, emphasis.  `own_words` then sets aside words that the model writes but
does not say in its own voice: quotations, code, the lines of a script, verse.
"""

import re
import unicodedata

__all__ = ["normalise", "own_words"]

_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("‘’‛ʼ´", "'"),
        **dict.fromkeys("“”„‟«»", '"'),
        # Soft hyphen, zero-width space and joiners, direction marks, word joiner, byte-order mark.
        **dict.fromkeys("\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff", ""),
    }
)
_SPECIAL_TOKEN = re.compile(r"<\|[^<>|]*\|>|</?s>")
_THINKING = re.compile(
    r"\A(?:(?!<think).)*</think(?:ing)?>"  # the template opened the block, the reply closes it
    r"|<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)",  # unclosed: all that follows is thinking
    re.DOTALL,
)
_EMPHASIS = re.compile(
    r"^[ \t]*#{1,6}(?:[ \t]|$)|~~"
    r"|\*{1,3}(?=\S)|(?<=\S)\*{1,3}"  # "* " alone is a list mark
    r"|(?<!\w)_{1,3}(?=\S)|(?<=\S)_{1,3}(?!\w)",  # snake_case stays
    re.MULTILINE,
)


def _normalise_once(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).translate(_CHARACTERS).casefold()
    text = _EMPHASIS.sub("", _THINKING.sub(" ", _SPECIAL_TOKEN.sub(" ", text)))
    return re.sub(r"\s+", lambda run: "\n" if "\n" in run[0] else " ", text).strip()


def normalise(response: str) -> str:
    """The reply in one plain form.

    Unicode NFKC, straight quotes, case folded; without zero-width characters, special tokens,
    thinking (a block that never closes takes the rest of the reply with it) or markdown emphasis.
    A run of white space becomes one space, or one line break if it holds one.  Doing it twice
    changes nothing.
    """
    text = _normalise_once(response)
    while (again := _normalise_once(text)) != text:  # what one round strips may uncover more
        text = again
    return text


_CITED = re.compile(
    r"```.*?(?:```|\Z)"  # code
    r"|^>[^\n]*"  # block quotation
    r'|"[^"]*"|(?<!\S)"[^"]*\Z',  # speech, also where the reply was cut off inside it
    re.DOTALL | re.MULTILINE,
)
_SCRIPT_LINE = re.compile(r"^(?!assistant|answer|response|note)[a-z][\w ]{0,15}: .*$", re.MULTILINE)
_VERSE = re.compile(r"(?:[a-z][^\n]{0,59}\n){2,}[a-z][^\n]{0,59}")  # three or more short lines ...
_UNFINISHED_LINE = re.compile(r"[a-z,;]$", re.MULTILINE)  # ... of which half run on


def own_words(text: str) -> str:
    """The words of a normalised reply that are the model's own, on one line; may be empty."""
    if whole := re.fullmatch(r'"([^"]*)"', text):  # small models like to quote their own answer
        text = whole[1]
    text = _CITED.sub(" ", text)
    if _VERSE.fullmatch(text) and 2 * len(_UNFINISHED_LINE.findall(text)) > text.count("\n"):
        return ""
    if len(_SCRIPT_LINE.findall(text)) >= 2:
        text = _SCRIPT_LINE.sub(" ", text)
    return " ".join(text.split())
