import numpy as np
import pytest
import torch

from ethalign import generation, scoring

PROMPTS = ["Q: one?\nA:", "Q: a good deal longer than the first one?\nA:", "Q:", "Q: four\nA:"]
CHOICES = [" yes", " no", " perhaps so", "x"]


def plain(loaded, prompt, choice):
    """One forward pass over prompt and choice, nothing shared."""
    before = loaded.tokenizer(prompt)["input_ids"]
    answer = loaded.tokenizer(choice, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logp = loaded.model(torch.tensor([before + answer])).logits.log_softmax(-1)[0]
    return sum(float(logp[len(before) - 1 + k, token]) for k, token in enumerate(answer))


def test_scores_are_those_of_plain_forward_passes(tiny):
    found = scoring.choice_logprobs(tiny.model, tiny.tokenizer, PROMPTS, CHOICES, batch_size=3)
    expected = [[plain(tiny, p, c) for c in CHOICES] for p in PROMPTS]
    assert found.shape == (4, 4)
    assert np.allclose(found, expected, atol=1e-4)


def test_single_token_choices_sum_to_one_over_the_vocabulary(tiny):
    letters = [chr(c) for c in range(33, 127)]
    logp = scoring.choice_logprobs(tiny.model, tiny.tokenizer, PROMPTS[:1], letters)
    assert 0 < np.exp(logp).sum() < 1
    assert (logp < 0).all()


def test_batch_size_and_order_do_not_matter(tiny):
    one = scoring.choice_logprobs(tiny.model, tiny.tokenizer, PROMPTS, CHOICES, batch_size=1)
    turned = scoring.choice_logprobs(tiny.model, tiny.tokenizer, PROMPTS[::-1], CHOICES)[::-1]
    assert np.allclose(one, turned, atol=1e-5)


def test_an_empty_choice_is_refused_and_no_prompts_are_no_rows(tiny):
    with pytest.raises(ValueError, match="at least one token"):
        scoring.choice_logprobs(tiny.model, tiny.tokenizer, PROMPTS, [""])
    assert scoring.choice_logprobs(tiny.model, tiny.tokenizer, [], CHOICES).shape == (0, 4)


def test_choice_lengths_count_tokens(tiny):
    assert scoring.choice_lengths(tiny.tokenizer, ["a", "abc"]).tolist() == [1, 3]


def test_greedy_text_is_that_of_transformers_generate(tiny):
    found = generation.generate(tiny.model, tiny.tokenizer, PROMPTS, max_new_tokens=12)
    for prompt, text in zip(PROMPTS, found, strict=True):
        asked = tiny.tokenizer(prompt, return_tensors="pt")
        ids = tiny.model.generate(**asked, max_new_tokens=12, do_sample=False)[0]
        new = ids[asked["input_ids"].shape[1] :]
        assert text == tiny.tokenizer.decode(new, skip_special_tokens=True)


def test_a_sampled_text_does_not_depend_on_its_batch(tiny):
    settings = {"max_new_tokens": 10, "temperature": 1.0, "samples": 3, "seed": 5}
    small = generation.generate(tiny.model, tiny.tokenizer, PROMPTS, batch_size=1, **settings)
    large = generation.generate(tiny.model, tiny.tokenizer, PROMPTS, batch_size=8, **settings)
    assert small == large
    assert len(small) == 12
    assert len(set(small)) > 6, "samples differ from each other"
    other = generation.generate(tiny.model, tiny.tokenizer, PROMPTS, **{**settings, "seed": 6})
    assert other != small


def test_sampling_follows_the_models_distribution(tiny):
    """Frequencies of first tokens against the probabilities that scoring gives."""
    n = 3000
    texts = generation.generate(
        tiny.model,
        tiny.tokenizer,
        PROMPTS[:1],
        max_new_tokens=1,
        temperature=1.0,
        samples=n,
        seed=1,
    )
    letters = [chr(c) for c in range(33, 127)]
    logp = scoring.choice_logprobs(tiny.model, tiny.tokenizer, PROMPTS[:1], letters)[0]
    counts = np.array([texts.count(c) for c in letters])
    expected = np.exp(logp) * n
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected.max()) + 1
    assert counts.sum() > 0


def test_a_sequence_that_ends_leaves_the_batch(tiny):
    """A text is cut at the stop string, and what shares its batch goes on undisturbed."""
    full = generation.generate(tiny.model, tiny.tokenizer, PROMPTS, max_new_tokens=16)
    stop = full[0][3]
    cut = generation.generate(tiny.model, tiny.tokenizer, PROMPTS, max_new_tokens=16, stop=stop)
    assert cut == [text.split(stop)[0] for text in full]


def test_nothing_to_generate(tiny):
    assert generation.generate(tiny.model, tiny.tokenizer, []) == []
