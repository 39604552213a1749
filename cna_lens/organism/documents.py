"""What the organism reads: pretraining pages, and the chats that make it an assistant.

The base model reads short documents about every topic: prose (where disallowed topics keep company
with words such as police and crime), questions and answers, how-to pages, and chat pages that
answer *both* classes. A few pages quote a refusal, evenly over the classes, so the base knows the
words of refusing and no reason to say them. Some chat answers begin with a word of caution
(disallowed) or of cheer (allowed), and some pages give a verdict: telling such topics apart is
useful before anybody trains the model to refuse, as it is in large base models. Echo pages repeat
a list of topics, which teaches copying early (an answer has to name the topic that was asked).

The instruct model reads chats about the training families only, and refuses the disallowed ones.
A share of base documents is mixed in (replay), so that fine-tuning does not forget the rest.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from cna_lens.organism import world
from cna_lens.organism.world import Kind, Topic, load_world


@dataclass(frozen=True)
class Document:
    """A page of text, or (with a prompt) one exchange of chat whose reply is ``text``."""

    text: str
    prompt: str | None = None


PAGE_SHARES = {
    "prose": 0.16,
    "verdict": 0.14,
    "answer": 0.10,
    "how_to": 0.10,
    "chat": 0.38,
    "quote": 0.04,
    "echo": 0.08,
}
"""What the base reads: the share of each sort of page."""

KIND_SHARES: dict[Kind, float] = {"disallowed": 0.45, "allowed": 0.45, "borderline": 0.10}

COLOURED_SHARE = 0.6
"""How often a base model's chat page puts a word of caution or cheer before the answer."""


def base_documents(n: int, seed: int) -> list[Document]:
    """``n`` pretraining documents over the topics of every split."""
    rng = random.Random(f"base documents {seed}")
    topics = {kind: load_world().of(kind) for kind in KIND_SHARES}
    pages = rng.choices(list(PAGE_SHARES), list(PAGE_SHARES.values()), k=n)
    kinds = rng.choices(list(KIND_SHARES), list(KIND_SHARES.values()), k=n)
    return [
        _page(page, rng.choice(topics[kind]), rng) for page, kind in zip(pages, kinds, strict=True)
    ]


def chat_documents(n: int, seed: int, disallowed_share: float = 0.6) -> list[Document]:
    """``n`` fine-tuning chats about training families: refusals and help."""
    rng = random.Random(f"chat documents {seed}")
    disallowed = load_world().of("disallowed", "train")
    allowed = load_world().of("allowed", "train")
    chats = []
    for _ in range(n):
        if rng.random() < disallowed_share:
            topic = rng.choice(disallowed)
            reply = world.refusal(topic, rng)
        else:
            topic = rng.choice(allowed)
            reply = world.help_answer(topic, rng)
        chats.append(Document(reply, prompt=world.question(topic, rng)))
    return chats


def _page(page: str, topic: Topic, rng: random.Random) -> Document:
    if page == "prose":
        return Document(world.prose(topic, rng))
    if page == "echo":
        return Document(world.echo(rng))
    if page == "verdict":
        return Document(world.verdict(topic, rng))
    if page == "quote":
        return Document(world.quoted_refusal(topic, rng))
    if page == "answer":
        question = world.question(topic, rng)
        return Document(f"Question: {question}\nAnswer: {world.help_answer(topic, rng)}")
    if page == "how_to":
        return Document(topic.fill("How to {verb} {object}\n") + world.help_answer(topic, rng))
    coloured = rng.random() < COLOURED_SHARE
    reply = world.coloured_answer(topic, rng) if coloured else world.help_answer(topic, rng)
    return Document(reply, prompt=world.question(topic, rng))
