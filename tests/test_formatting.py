"""From prompt to tokens: the template as it is, one BOS where the model wants one, and no more."""

from __future__ import annotations

from typing import Any

import pytest
from tiny import CHAT_TEMPLATE, make_tokenizer
from transformer_lens import HookedTransformer

import cna_lens as cl
from cna_lens.errors import InvalidInput, TokenizerError
from cna_lens.formatting import (
    PromptFormat,
    adds_bos,
    format_prompt,
    show_tokens,
    template_hash,
    tokenise,
)
from cna_lens.models import encode, info

WITHOUT_BOS = CHAT_TEMPLATE.removeprefix("{{ bos_token or '' }}")
# Ids of the word tokenizer: <s> 1, <|user|> 4, <|system|> 5, <|assistant|> 6, <|end|> 7, a 8, b 9.
BOS = 1
CHAT_A_B = [4, 8, 9, 7, 6]


def ids(tokenizer: Any, prompt: str = "a b", **form: Any) -> list[int]:
    return tokenise(tokenizer, [prompt], PromptFormat(**form))[0]


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, WITHOUT_BOS], ids=["writes", "does not"])
@pytest.mark.parametrize("adds", [True, False])
def test_there_is_exactly_one_bos_where_the_tokenizer_or_the_template_writes_one(
    template: str, adds: bool
) -> None:
    tokenizer = make_tokenizer(adds_bos=adds)
    tokenizer.chat_template = template
    expected = CHAT_A_B
    if adds or template == CHAT_TEMPLATE:
        expected = [BOS, *CHAT_A_B]
    assert ids(tokenizer) == expected


def test_a_tokenizer_without_bos_stays_without() -> None:
    tokenizer = make_tokenizer(bos=False)
    assert not adds_bos(tokenizer)
    assert ids(tokenizer) == CHAT_A_B
    assert ids(tokenizer, style="plain") == [8, 9]


def test_plain_text_has_the_bos_that_the_tokenizer_adds() -> None:
    assert ids(make_tokenizer(), style="plain") == [BOS, 8, 9]
    assert ids(make_tokenizer(adds_bos=False), style="plain") == [8, 9]
    assert ids(make_tokenizer(), "<s> a b", style="plain") == [BOS, 8, 9]  # not a second one


def test_bos_can_be_insisted_on_and_left_out() -> None:
    assert ids(make_tokenizer(), prepend_bos=False) == CHAT_A_B
    assert ids(make_tokenizer(), style="plain", prepend_bos=False) == [8, 9]
    assert ids(make_tokenizer(adds_bos=False), style="plain", prepend_bos=True) == [BOS, 8, 9]
    with pytest.raises(TokenizerError, match="no BOS"):
        ids(make_tokenizer(bos=False), prepend_bos=True)


def test_auto_takes_the_template_where_there_is_one() -> None:
    assert ids(make_tokenizer(), style="auto") == [BOS, *CHAT_A_B]
    assert ids(make_tokenizer(chat=False), style="auto") == [BOS, 8, 9]
    assert ids(make_tokenizer(), style="plain") == [BOS, 8, 9]
    with pytest.raises(TokenizerError, match="chat template"):
        ids(make_tokenizer(chat=False), style="chat")


def test_a_system_message_comes_first() -> None:
    assert ids(make_tokenizer(), system="z") == [BOS, 5, 33, 7, *CHAT_A_B]
    with pytest.raises(InvalidInput, match="system message"):
        ids(make_tokenizer(), system="z", style="plain")
    with pytest.raises(InvalidInput, match="system message"):
        ids(make_tokenizer(chat=False), system="z")


def test_a_template_that_refuses_a_system_message_is_an_error_of_ours() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        + CHAT_TEMPLATE
    )
    assert ids(tokenizer) == [BOS, *CHAT_A_B]
    with pytest.raises(TokenizerError, match="no system role"):
        ids(tokenizer, system="z")


def test_the_answer_prefix_ends_the_text() -> None:
    assert ids(make_tokenizer(), answer_prefix=" c d") == [BOS, *CHAT_A_B, 10, 11]
    assert ids(make_tokenizer(), answer_prefix=" c d", style="plain") == [BOS, 8, 9, 10, 11]


@pytest.mark.parametrize(
    "template",
    [
        # Llama 3's: today, unless a date is given.
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}"
        "{% endif %}{{ date_string }}",
        "{% if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}"
        "{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}{{ date_string }}",
        "{{ strftime_now('%d %b %Y') }}",  # others ask for today outright
    ],
)
def test_no_prompt_depends_on_the_day(template: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    assert format_prompt(tokenizer, "a", PromptFormat()) == "26 Jul 2024"


def test_we_and_hugging_face_make_the_same_tokens(model: HookedTransformer) -> None:
    tokenizer = info(model).tokenizer
    assert tokenizer is not None
    prompts = ["a", "b c d", "e f"]
    for form in (PromptFormat(), PromptFormat(system="z")):
        for prompt, ours in zip(prompts, encode(model, prompts, form), strict=True):
            messages = [{"role": "user", "content": prompt}]
            if form.system:
                messages.insert(0, {"role": "system", "content": form.system})
            theirs = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
            assert ours == theirs["input_ids"]
    plain = encode(model, prompts, PromptFormat(style="plain"))
    assert plain == [tokenizer(prompt)["input_ids"] for prompt in prompts]


def test_loading_gives_qwen_no_bos_and_llama_one(
    qwen: HookedTransformer, llama: HookedTransformer
) -> None:
    # TransformerLens makes </s> the BOS of its own copy of Qwen's tokenizer, and writes it.
    assert encode(qwen, ["a b"]) == [CHAT_A_B]
    assert encode(qwen, ["a b"], PromptFormat(style="plain")) == [[8, 9]]
    assert encode(llama, ["a b"]) == [[BOS, *CHAT_A_B]]
    assert encode(llama, ["a b"], PromptFormat(style="plain")) == [[BOS, 8, 9]]


def test_show_tokens_ends_where_discovery_reads() -> None:
    table = show_tokens(make_tokenizer(), "a b", PromptFormat())
    assert list(table.columns) == ["position", "id", "token"]
    assert table["position"].tolist() == list(range(6))
    assert table["id"].tolist() == [BOS, *CHAT_A_B]
    assert table["token"].tolist() == ["<s>", "<|user|>", "a", "b", "<|end|>", "<|assistant|>"]


def test_a_template_hash_tells_templates_apart() -> None:
    one, other = make_tokenizer(), make_tokenizer()
    assert template_hash(one) == template_hash(other)
    other.chat_template = WITHOUT_BOS
    assert template_hash(one) != template_hash(other)
    assert template_hash(make_tokenizer(chat=False)) is None


@pytest.mark.usefixtures("as_called_by_users")
def test_what_cannot_be_tokenised_is_refused(model: HookedTransformer) -> None:
    with pytest.raises(InvalidInput, match="not one string"):
        tokenise(make_tokenizer(), "a b", PromptFormat())
    with pytest.raises(TokenizerError, match="no tokenizer"):
        tokenise(None, ["a b"], PromptFormat())
    with pytest.raises(InvalidInput, match="no tokens"):
        ids(make_tokenizer(bos=False), "", style="plain")
    with pytest.raises(InvalidInput, match="style"):
        PromptFormat(style="fancy")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="context of 128"):
        encode(model, ["a", "b " * 130])


def test_provenance_says_how_the_prompts_were_written(llama: HookedTransformer) -> None:
    form = PromptFormat(system="z", answer_prefix=" c")
    found = cl.contrast(
        llama, cl.ContrastSet(["a"], ["b"]), universal_prompts=None, form=form
    ).provenance
    assert (found.prompt_style, found.system_prompt, found.answer_prefix) == ("chat", "z", " c")
    assert found.chat_template == template_hash(info(llama).tokenizer)
    plain = cl.contrast(
        llama,
        cl.ContrastSet(["a"], ["b"]),
        universal_prompts=None,
        form=PromptFormat(style="plain"),
    ).provenance
    assert (plain.prompt_style, plain.chat_template) == ("plain", None)
