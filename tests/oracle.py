"""A transformer written down by hand, whose behaviour a few planted neurons carry alone.

It answers `sure`, or `refuse` where the prompt holds the word `evil`. Two layers of 20 neurons
(ReLU, or gated ReLU), one attention head, no normalisation: every number can be worked out on
paper, and the tests do so. The residual stream has one direction a feature:

    const   1 at every token            refuse, sure, stop   read by the unembedding
    evil    1 at the word `evil`        junk                 read by nothing
    seen    1 where `evil` came before (written by the attention head of layer 0)
    mood    +1 or -1, at the nouns
    loud    1 at the word `shout`

A neuron fires max(0, a sum of features) and writes a multiple of that into one direction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformers import PreTrainedTokenizerFast

N_LAYERS, D_MLP = 2, 20
FEATURES = ("const", "evil", "seen", "mood", "loud", "refuse", "sure", "stop", "junk")
CHEERFUL = ("lock", "wire", "code", "safe")  # mood +1
GLOOMY = ("lamp", "soup", "song", "tree")  # mood -1
WORDS = ("<pad>", "</s>", "<unk>", "refuse", "sure", "evil", "shout", "please", "the")
VOCABULARY = (*WORDS, *CHEERFUL, *GLOOMY)
SURE_BIAS = 4.0  # the logit of `sure`, whatever the prompt


@dataclass(frozen=True)
class Planted:
    """A neuron: fires max(0, sum of reads), and writes `writes` times that into `into`."""

    layer: int
    neuron: int
    reads: dict[str, float]
    into: str = "junk"
    writes: float = 1.0


# The behaviour: with `evil` in the prompt they fire 4 + mood, 3 and 2; without it 0, 0 and 0.
# (relu(6 seen + mood - 2): 4 + mood with `evil`; max(0, mood - 2) = 0 without.)
REFUSERS = (
    Planted(0, 3, {"seen": 6.0, "mood": 1.0, "const": -2.0}, "refuse"),
    Planted(1, 7, {"seen": 3.0}, "refuse"),
    Planted(1, 11, {"seen": 2.0}, "refuse"),
)
# Fires 5 on prompts without `evil`, 0 with it: a negative delta of 5.
HELPER = Planted(0, 5, {"const": 5.0, "seen": -5.0}, "sure")
# 50 on every prompt; and 60, or 80 with `evil`: a delta of 20, the largest of all.
UNIVERSAL = (
    Planted(0, 0, {"const": 50.0}),
    Planted(1, 1, {"const": 60.0, "seen": 20.0}),
)
# Unrelated to the answer. WIDE moves by 1.5 with a large spread, NARROW by 1 with a small one.
WIDE = Planted(1, 14, {"const": 20.0, "seen": 1.5, "mood": 8.0})
NARROW = Planted(0, 16, {"const": 5.0, "seen": 1.0, "mood": 0.5})
SHOUTER = Planted(0, 9, {"loud": 100.0})
NOISE = (
    Planted(0, 12, {"mood": 2.0, "const": 1.0}),
    Planted(0, 18, {"mood": -3.0, "const": 2.0}),
    Planted(1, 2, {"mood": 0.5, "const": 0.25}),
    Planted(1, 19, {"const": 7.0, "mood": -4.0}),
)
PLANTED = (*REFUSERS, HELPER, *UNIVERSAL, WIDE, NARROW, SHOUTER, *NOISE)

# Both sides hold the same nouns, so mood cancels out of every delta.
POSITIVE = ("evil lock", "please evil lamp", "the evil wire", "evil the soup")
NEGATIVE = ("lock", "please lamp", "the wire", "the soup")
# The top two neurons (5 % of 40) are the universal ones, but for `shout`, on which SHOUTER fires
# 100 and pushes neuron (0, 0) out: it is in the top for 4 of 5 prompts, exactly 80 %.
DIVERSE = ("code", "please song", "the tree", "safe", "shout")


def where(*planted: Planted) -> list[tuple[int, int]]:
    """(layer, neuron) of each."""
    return [(neuron.layer, neuron.neuron) for neuron in planted]


def words_tokenizer() -> PreTrainedTokenizerFast:
    """One id a word, no BOS, no chat template."""
    vocabulary = {word: i for i, word in enumerate(VOCABULARY)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


@torch.no_grad()
def build_oracle(*, gated: bool) -> HookedTransformer:
    """The model described above. A gated neuron (0, 0) fires -50 in place of 50."""
    at = {feature: i for i, feature in enumerate(FEATURES)}
    token = {word: i for i, word in enumerate(VOCABULARY)}
    model = HookedTransformer(
        HookedTransformerConfig(
            n_layers=N_LAYERS,
            d_model=len(FEATURES),
            n_ctx=32,
            d_head=4,
            n_heads=1,
            d_mlp=D_MLP,
            d_vocab=len(VOCABULARY),
            act_fn="relu",
            gated_mlp=gated,
            normalization_type=None,
            model_name="oracle",
            device="cpu",
            init_weights=False,
        )
    )
    for parameter in model.parameters():
        parameter.zero_()

    embedding = model.embed.W_E
    embedding[1:, at["const"]] = 1.0  # all but <pad>
    embedding[token["evil"], at["evil"]] = 1.0
    embedding[token["shout"], at["loud"]] = 1.0
    for words, mood in ((CHEERFUL, 1.0), (GLOOMY, -1.0)):
        for word in words:
            embedding[token[word], at["mood"]] = mood
    for answer in ("refuse", "sure"):  # after an answer comes the end
        embedding[token[answer], at["stop"]] = 100.0

    # Scores are 400 / sqrt(4) = 200 at `evil` and 0 elsewhere: softmax in float32 is 1 or 0 there.
    # Without `evil` the pattern is uniform over values that are all 0.
    attention = model.blocks[0].attn
    attention.W_Q[0, at["const"], 0] = 1.0
    attention.W_K[0, at["evil"], 0] = 400.0
    attention.W_V[0, at["evil"], 0] = 1.0
    attention.W_O[0, 0, at["seen"]] = 1.0

    for planted in PLANTED:
        mlp = model.blocks[planted.layer].mlp
        reading = mlp.W_gate if gated else mlp.W_in
        for feature, weight in planted.reads.items():
            reading[at[feature], planted.neuron] = weight
        if gated:  # the linear half is 1 at every token, -1 for the first universal neuron
            sign = -1.0 if planted == UNIVERSAL[0] else 1.0
            mlp.W_in[at["const"], planted.neuron] = sign
        mlp.W_out[planted.neuron, at[planted.into]] = planted.writes

    model.unembed.W_U[at["refuse"], token["refuse"]] = 1.0
    model.unembed.W_U[at["sure"], token["sure"]] = 1.0
    model.unembed.W_U[at["stop"], token["</s>"]] = 1.0
    model.unembed.b_U[token["sure"]] = SURE_BIAS
    return model.eval()
