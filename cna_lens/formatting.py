"""From a prompt to the tokens that a model sees: the one place that formats and tokenises.

Instruct models read a prompt through their chat template with the generation prompt added; base
models read plain text. Some base checkpoints (Qwen2.5) carry a template too, so the style is a
setting: `auto` takes the template where there is one, `chat` insists on it, `plain` never uses it.

Tokenising a formatted text again is where a second BOS creeps in. Here the text is tokenised once,
and ends with exactly one BOS where the checkpoint's own tokenizer adds one, and none otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from jinja2 import TemplateError

from cna_lens.errors import InvalidInput, TokenizerError
from cna_lens.provenance import digest

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

Style = Literal["auto", "chat", "plain"]

# Some templates print today's date, which they ask `strftime_now` for; a result must not depend on
# it. A macro of that name gives the date that Llama 3's template falls back to.
_NO_TODAY = "{% macro strftime_now(form) %}26 Jul 2024{% endmacro %}{{ '' }}"


@dataclass(frozen=True)
class PromptFormat:
    """How prompts become text.

    Args:
        style: `chat` (the tokenizer's chat template with generation prompt), `plain` (the text as
            it is), or `auto` (chat where the tokenizer has a template, else plain).
        system: a system message (chat only).
        answer_prefix: text that the answer is made to begin with, after the generation prompt.
        prepend_bos: None follows the checkpoint's own tokenizer; True and False insist.
    """

    style: Style = "auto"
    system: str | None = None
    answer_prefix: str = ""
    prepend_bos: bool | None = None

    def __post_init__(self) -> None:
        if self.style not in get_args(Style):
            raise InvalidInput(
                f"prompt style {self.style!r} is not one of {', '.join(get_args(Style))}"
            )

    def resolve(self, tokenizer: PreTrainedTokenizerBase) -> Literal["chat", "plain"]:
        """The style that will be used with this tokenizer.

        Raises:
            TokenizerError: `chat` was asked for and there is no template.
            InvalidInput: a system message with plain prompts.
        """
        has_template = bool(tokenizer.chat_template)
        if self.style == "chat" and not has_template:
            raise TokenizerError(
                "prompt style 'chat' needs a tokenizer with a chat template, and this one has "
                "none. Use style 'plain', or set tokenizer.chat_template."
            )
        chat = self.style == "chat" or (self.style == "auto" and has_template)
        if self.system is not None and not chat:
            raise InvalidInput("a system message needs prompt style 'chat'")
        return "chat" if chat else "plain"


def format_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str, form: PromptFormat) -> str:
    """The text that the model reads for `prompt`: template, generation prompt, answer prefix.

    Raises:
        TokenizerError: the chat template refuses the messages (some know no system role).
    """
    if form.resolve(tokenizer) == "plain":
        return prompt + form.answer_prefix
    messages = [{"role": "user", "content": prompt}]
    if form.system is not None:
        messages.insert(0, {"role": "system", "content": form.system})
    template = tokenizer.get_chat_template()
    try:
        text = tokenizer.apply_chat_template(
            messages,
            chat_template=_NO_TODAY + template if "strftime_now" in template else template,
            tokenize=False,
            add_generation_prompt=True,
        )
    except TemplateError as error:
        raise TokenizerError(
            f"the chat template refuses this prompt: {error}. Leave the system message out, or "
            "use style 'plain'."
        ) from error
    return str(text) + form.answer_prefix


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer, left alone, begins a text with its BOS token."""
    bos = tokenizer.bos_token_id
    return bos is not None and _encode(tokenizer, "a", special=True)[:1] == [bos]


def tokenise(
    tokenizer: PreTrainedTokenizerBase | None, prompts: Sequence[str], form: PromptFormat
) -> list[list[int]]:
    """Token ids of each prompt, formatted, with exactly one BOS where the model wants one.

    Raises:
        TokenizerError: there is no tokenizer, or BOS was insisted on and it has none.
        InvalidInput: a prompt gives no tokens at all, or `prompts` is one string.
    """
    if tokenizer is None:
        raise TokenizerError("the model has no tokenizer: load_model(model, tokenizer=...)")
    if isinstance(prompts, str):
        raise InvalidInput("prompts must be a list of strings, not one string")
    bos = tokenizer.bos_token_id
    wanted = adds_bos(tokenizer) if form.prepend_bos is None else form.prepend_bos
    if wanted and bos is None:
        raise TokenizerError("prepend_bos=True, but the tokenizer has no BOS token")
    sequences = []
    for prompt in prompts:
        ids = _encode(tokenizer, format_prompt(tokenizer, prompt, form), special=False)
        body = 0
        while bos is not None and body < len(ids) and ids[body] == bos:
            body += 1
        # A template may write a BOS that the bare tokenizer does not: one of those stays.
        keep = wanted or (body > 0 and form.prepend_bos is None)
        sequence = [bos, *ids[body:]] if keep and bos is not None else ids[body:]
        if not sequence:
            raise InvalidInput(f"prompt {prompt!r} gives no tokens")
        sequences.append(sequence)
    return sequences


def show_tokens(
    tokenizer: PreTrainedTokenizerBase, prompt: str, form: PromptFormat
) -> pd.DataFrame:
    """What the model sees for one prompt, a row a token: position, id, token.

    The last row is where discovery reads the neurons.
    """
    import pandas as pd

    ids = tokenise(tokenizer, [prompt], form)[0]
    tokens = [tokenizer.decode([i]) for i in ids]
    return pd.DataFrame({"position": range(len(ids)), "id": ids, "token": tokens})


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A digest of the chat template, None where there is none."""
    template = tokenizer.chat_template
    return digest([str(template)]) if template else None


def _encode(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special)["input_ids"])
