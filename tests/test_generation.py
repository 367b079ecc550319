import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from ethalign import config, generation, models, scoring
from ethalign.models import Loaded

PROMPTS = ["Q: one?\nA:", "Q: a good deal longer than the first one?\nA:", "Q:", "Q: four\nA:"]
# Lengths from one token to several hundred; the second list shares a long opening.
APART = ["Q: one?", "x", "Long. " * 60, "Why?\nA:", "Who wrote it, and when?\nA:", "tail " * 20]
SHARED = [f"Answer the question, please.\nQ: {text}" for text in APART]


@pytest.fixture(scope="module")
def lively() -> Loaded:
    """The random model with larger weights, so that its words depend on all that was read."""
    loaded = models.load(config.Model(id="random-tiny", device="cpu", dtype="float32"))
    inner: Any = loaded.model.model
    with torch.no_grad():
        inner.embed_tokens.weight.mul_(20)
        for weight in inner.layers.parameters():
            if weight.dim() == 2:
                weight.mul_(15)
    return loaded


def ask(loaded: Loaded, prompts: list[str], **settings: Any) -> list[str]:
    return generation.generate(loaded.model, loaded.tokenizer, prompts, **settings)


def tokens_as_text(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts become lists of token ids, so that no two of them look alike once decoded."""

    def spell(ids: list[int], **_: Any) -> str:
        return " ".join(str(int(i)) for i in ids)

    monkeypatch.setattr(loaded.tokenizer, "decode", spell)


def feed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes (rows, length) of everything that the model is fed."""
    shapes = []
    whole = scoring.backbone

    def counted(model: Any, ids: torch.Tensor, *more: Any, **how: Any) -> Any:
        shapes.append(tuple(ids.shape))
        return whole(model, ids, *more, **how)

    for room in (scoring, generation):
        monkeypatch.setattr(room, "backbone", counted)
    return shapes


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("prompts", [APART, SHARED], ids=["apart", "shared"])
def test_other_texts_are_scored_without_another_look_at_the_prompts(
    lively: Loaded, prompts: list[str], samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = [" no", " I apologize, but no.", "x"]
    how: Any = {"max_new_tokens": 6, "batch_size": 4, "samples": samples, "temperature": 1.0}
    model = lively.model, lively.tokenizer, prompts
    alone = generation.write(*model, **how)
    wanted = scoring.choice_logprobs(*model, choices, batch_size=4)
    fed = feed(monkeypatch)
    both = generation.write(*model, **how, choices=choices)
    assert both.texts == alone.texts
    assert both.logp.tolist() == alone.logp.tolist()
    assert alone.choices.shape == (len(prompts), 0)
    assert np.abs(both.choices - wanted).max() < 1e-6
    assert len({*map(tuple, wanted.round(3))}) == len(prompts), "else their order proves nothing"
    longest = max(len(lively.tokenizer(p)["input_ids"]) for p in prompts)
    assert sum(length > longest / 2 for _, length in fed) == 1, "the longest prompt is read once"


def plain(loaded: Loaded, prompt: str, new: list[int]) -> list[float]:
    """Log-probability of each new token after one forward pass over everything."""
    before = loaded.tokenizer(prompt)["input_ids"]
    with torch.no_grad():
        logp = loaded.model(torch.tensor([before + new])).logits.log_softmax(-1)[0]
    return [float(logp[len(before) - 1 + k, token]) for k, token in enumerate(new)]


@pytest.mark.parametrize("prompts", [APART, SHARED], ids=["apart", "shared"])
def test_a_greedy_text_depends_neither_on_batch_size_nor_on_order(
    lively: Loaded, monkeypatch: pytest.MonkeyPatch, prompts: list[str]
) -> None:
    tokens_as_text(lively, monkeypatch)
    settings: dict[str, Any] = {"max_new_tokens": 12}
    alone = ask(lively, prompts, batch_size=1, **settings)
    assert len(set(alone)) > 1
    order = [4, 2, 0, 5, 1, 3]
    mixed = [prompts[i] for i in order]
    for size in (3, 64):
        found = ask(lively, mixed, batch_size=size, **settings)
        assert found == [alone[i] for i in order]
    single = [ask(lively, [p], **settings)[0] for p in prompts]
    assert single == alone, "nor on whether anything else is asked at all"


@pytest.mark.parametrize("prompts", [PROMPTS, SHARED], ids=["apart", "shared"])
def test_greedy_tokens_are_those_of_transformers_generate(
    lively: Loaded, monkeypatch: pytest.MonkeyPatch, prompts: list[str]
) -> None:
    expected: list[list[int]] = []
    for prompt in prompts:
        asked: Any = lively.tokenizer(prompt, return_tensors="pt")
        model: Any = lively.model
        ids = model.generate(**asked, max_new_tokens=12, do_sample=False)[0]
        expected.append(ids[asked["input_ids"].shape[1] :].tolist())
    texts = ask(lively, prompts, max_new_tokens=12)
    for text, ids in zip(texts, expected, strict=True):
        assert text == lively.tokenizer.decode(ids, skip_special_tokens=True)
    tokens_as_text(lively, monkeypatch)
    found = ask(lively, prompts, max_new_tokens=12)
    assert [[int(i) for i in text.split()] for text in found] == expected


def test_a_sampled_text_does_not_depend_on_its_batch(lively: Loaded) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 10, "temperature": 1.0, "samples": 3, "seed": 5}
    small = ask(lively, PROMPTS, batch_size=1, **settings)
    large = ask(lively, PROMPTS, batch_size=8, **settings)
    assert small == large
    assert len(small) == 12
    assert len(set(small)) > 6, "samples differ from each other"
    other = ask(lively, PROMPTS, **{**settings, "seed": 6})
    assert other != small


def test_samples_belong_to_seed_and_place_whatever_else_is_asked(lively: Loaded) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 10, "temperature": 1.0, "samples": 3, "seed": 5}
    first = ask(lively, PROMPTS, **settings)
    others = ["What?", PROMPTS[1], "Something else of quite another length:", "y"]
    second = ask(lively, others, **settings)
    assert second[3:6] == first[3:6]
    assert second[:3] != first[:3]
    moved = ask(lively, [PROMPTS[1]], **settings)
    assert moved != first[3:6], "another place has random numbers of its own"
    twice = ask(lively, [PROMPTS[1]] * 2, **settings)
    assert twice[:3] != twice[3:], "as has the same prompt asked again"


def test_sampling_follows_the_models_distribution(lively: Loaded) -> None:
    """Frequencies of first tokens against the probabilities that scoring gives."""
    n = 3000
    texts = ask(lively, PROMPTS[:1], max_new_tokens=1, temperature=1.0, samples=n, seed=1)
    letters = [chr(c) for c in range(33, 127)]
    logp = scoring.choice_logprobs(lively.model, lively.tokenizer, PROMPTS[:1], letters)[0]
    counts = np.array([texts.count(c) for c in letters])
    expected = np.exp(logp) * n
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected.max()) + 1
    assert counts.sum() > 0


def test_a_cold_sample_is_the_greedy_text(lively: Loaded) -> None:
    greedy = ask(lively, PROMPTS, max_new_tokens=8)
    cold = ask(lively, PROMPTS, max_new_tokens=8, temperature=1e-6, samples=2)
    assert cold == [text for text in greedy for _ in range(2)]


def test_a_text_is_cut_at_the_stop_and_its_batch_goes_on_undisturbed(lively: Loaded) -> None:
    full = ask(lively, PROMPTS, max_new_tokens=16)
    stop = full[0][3]
    cut = ask(lively, PROMPTS, max_new_tokens=16, stop=stop)
    assert cut == [text.split(stop)[0] for text in full]
    assert len(cut[0]) <= 3


@pytest.mark.parametrize(
    ("script", "text", "tokens"),
    [
        ("\n\n Paris.\nBut", " Paris.", 10),
        (" Rome.\nOr", " Rome.", 7),
        ("\n \n \n \n \n \n \n", " ", 12),
    ],
)
def test_a_text_that_begins_with_a_line_break_is_not_cut_to_nothing(
    lively: Loaded, monkeypatch: pytest.MonkeyPatch, script: str, text: str, tokens: int
) -> None:
    ids = iter(lively.tokenizer(script, add_special_tokens=False)["input_ids"])
    monkeypatch.setattr(generation._Decoder, "_next", lambda *_: [next(ids)])
    monkeypatch.setattr(generation._Decoder, "_unsure", lambda *_: [])
    how: Any = {"max_new_tokens": 12, "stop": "\n"}
    found = generation.write(lively.model, lively.tokenizer, PROMPTS[:1], **how)
    assert (found.texts, found.tokens.tolist()) == ([text], [tokens])


@pytest.mark.parametrize("way", ["stop", "end of sequence"])
def test_a_sequence_that_has_ended_is_no_longer_fed(
    lively: Loaded, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 16, "temperature": 1.0, "samples": 8, "seed": 3}
    letters: dict[Any, str] = {
        lively.tokenizer.convert_tokens_to_ids(c): c for c in string.ascii_letters
    }
    tokens_as_text(lively, monkeypatch)
    texts = ask(lively, PROMPTS, **settings)
    full = [[int(i) for i in text.split()] for text in texts]
    last, _ = Counter(i for ids in full for i in ids if i in letters).most_common(1)[0]
    lengths = [ids.index(last) + 1 if last in ids else len(ids) for ids in full]
    assert len(set(lengths)) > 2, "some end early, at different steps"
    monkeypatch.undo()
    if way == "stop":
        settings["stop"] = letters[last]
    else:
        monkeypatch.setattr(lively.model.generation_config, "eos_token_id", [2, last])
    shapes = feed(monkeypatch)
    found = generation.write(lively.model, lively.tokenizer, PROMPTS, **settings)
    assert found.tokens.tolist() == lengths
    prompts, *steps = shapes
    assert prompts[0] == len(PROMPTS)
    # The last token of a sequence is never read.
    expected = [sum(length > step for length in lengths) for step in range(1, 16)]
    assert steps == [(rows, 1) for rows in expected if rows]


def test_a_prompt_is_read_once_for_all_its_samples(
    lively: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = feed(monkeypatch)
    ask(lively, PROMPTS[1:2], max_new_tokens=2, temperature=1.0, samples=5)
    length = len(lively.tokenizer(PROMPTS[1])["input_ids"])
    assert shapes == [(1, length), (5, 1)]


def test_a_shared_opening_is_read_once(lively: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = feed(monkeypatch)
    prompts = [f"Always the same opening. {end}" for end in ("One?", "Two, three?", "Four")]
    ask(lively, prompts, max_new_tokens=1)
    opening = len(lively.tokenizer("Always the same opening. ")["input_ids"])
    rest = len(lively.tokenizer("Two, three?")["input_ids"])
    assert shapes == [(1, opening), (3, rest)]


def test_a_prompt_that_is_the_opening_of_the_others_is_answered_as_well(lively: Loaded) -> None:
    prompts = ["Always the same opening", "Always the same opening. And more."]
    found = ask(lively, prompts, max_new_tokens=8)
    alone = [ask(lively, [p], max_new_tokens=8) for p in prompts]
    assert [[text] for text in found] == alone


def test_near_ties_are_settled_by_reading_the_text_alone(
    lively: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 6}
    usual = ask(lively, SHARED, **settings)
    monkeypatch.setattr(generation, "NEAR", 1e9)
    read: list[list[int]] = []
    whole = generation._Decoder._alone

    def alone(self: generation._Decoder, ids: list[int], banned: Sequence[int] = ()) -> int:
        read.append(ids)
        return whole(self, ids, banned)

    monkeypatch.setattr(generation._Decoder, "_alone", alone)
    assert ask(lively, SHARED, **settings) == usual
    assert len(read) == 6 * len(SHARED)
    asked = [lively.tokenizer(p)["input_ids"] for p in SHARED]
    assert all(any(ids[: len(a)] == a for a in asked) for ids in read), "opening included"
    read.clear()
    ask(lively, SHARED, temperature=1.0, **settings)
    assert not read, "what is drawn is not settled"


def test_a_tie_goes_to_what_reading_alone_says(
    lively: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of two equal tokens the batch would take."""
    monkeypatch.setattr(generation, "NEAR", 1e9)
    monkeypatch.setattr(generation._Decoder, "_alone", lambda self, ids, banned: len(ids))
    tokens_as_text(lively, monkeypatch)
    texts = ask(lively, ["abcdef", "abcd"], max_new_tokens=3)
    assert texts == ["6 7 8", "4 5 6"]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("prompts", [PROMPTS, SHARED], ids=["apart", "shared"])
def test_logp_is_the_mean_of_what_a_whole_forward_pass_gives(
    lively: Loaded, monkeypatch: pytest.MonkeyPatch, prompts: list[str], temperature: float
) -> None:
    """At temperature 1 whatever the temperature of the draw, an end of sequence included."""
    monkeypatch.setattr(lively.model.generation_config, "eos_token_id", [2, *range(40, 100)])
    tokens_as_text(lively, monkeypatch)
    found = generation.write(
        lively.model,
        lively.tokenizer,
        prompts,
        max_new_tokens=10,
        temperature=temperature,
        samples=2,
        batch_size=3,
    )
    for place, text in enumerate(found.texts):
        ids = [int(i) for i in text.split()]
        logp = plain(lively, prompts[place // 2], ids)
        assert found.tokens[place] == len(ids)
        assert found.logp[place] == pytest.approx(np.mean(logp), abs=1e-4)
    assert found.tokens.min() < 10, "some have ended"


def test_nothing_to_generate(lively: Loaded) -> None:
    assert ask(lively, []) == []
    found = generation.write(lively.model, lively.tokenizer, [], samples=3, stop="\n")
    assert (found.texts, len(found.logp), len(found.tokens)) == ([], 0, 0)


@pytest.mark.parametrize("near", [0.0, 1e9])
def test_an_end_is_banned_for_the_first_tokens(
    lively: Loaded, monkeypatch: pytest.MonkeyPatch, near: float
) -> None:
    """Also where a near tie is settled apart."""
    monkeypatch.setattr(generation, "NEAR", near)
    free = generation.write(lively.model, lively.tokenizer, ["abc", "de"], max_new_tokens=5)
    first = lively.tokenizer(free.texts[0])["input_ids"][0]
    monkeypatch.setattr(lively.model.generation_config, "eos_token_id", first)
    least: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 3}
    ended = generation.write(lively.model, lively.tokenizer, ["abc", "de"], max_new_tokens=5)
    banned = generation.write(lively.model, lively.tokenizer, ["abc", "de"], **least)
    assert ended.tokens[0] == 1
    assert (banned.tokens >= 3).all()
