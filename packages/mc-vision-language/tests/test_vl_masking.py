"""Which tokens are hidden."""

import pytest
import torch

from mc_vision_language.encoders_config import TextEncoderConfig
from mc_vision_language.methods.albef.masking import mask_tokens

CONFIG = TextEncoderConfig(pad_id=0, cls_id=2, sep_id=3, mask_id=4)
VOCABULARY = 40


def texts(rows=400, length=12):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, VOCABULARY, (rows, length), generator=generator)
    ids[:, 0] = CONFIG.cls_id
    lengths = torch.randint(3, length + 1, (rows, 1), generator=generator)
    place = torch.arange(length)
    ids = torch.where(place == lengths - 1, CONFIG.sep_id, ids).masked_fill(place >= lengths, CONFIG.pad_id)
    return ids, (place < lengths).long(), torch.rand(rows, length, 3, generator=generator)


def test_special_tokens_are_never_hidden_and_the_rest_at_the_rate():
    ids, mask, noise = texts()
    found = mask_tokens(ids, mask, noise, CONFIG, VOCABULARY, 0.15)
    assert not torch.isin(found.words, torch.tensor([0, 2, 3])).any()
    maskable = (~torch.isin(ids, torch.tensor([0, 2, 3]))).sum()
    assert len(found.words) / maskable == pytest.approx(0.15, abs=0.02)
    untouched = torch.ones_like(ids, dtype=torch.bool)
    untouched[found.rows, found.columns] = False
    assert torch.equal(found.input_ids[untouched], ids[untouched])
    assert torch.equal(found.words, ids[found.rows, found.columns])


def test_four_fifths_become_the_mask_a_tenth_any_word_a_tenth_stay():
    ids, mask, noise = texts(rows=4000)
    found = mask_tokens(ids, mask, noise, CONFIG, VOCABULARY, 0.5)
    put = found.input_ids[found.rows, found.columns]
    hidden, kept = put == CONFIG.mask_id, put == found.words
    assert hidden.double().mean() == pytest.approx(0.8 + 0.1 / VOCABULARY, abs=0.01)
    assert kept.double().mean() == pytest.approx(0.1 + 0.1 / VOCABULARY, abs=0.01)
    other = put[~hidden & ~kept]
    assert set(other.tolist()) == set(range(VOCABULARY)) - {CONFIG.mask_id}


def test_a_batch_without_luck_still_hides_one():
    ids, mask, noise = texts(rows=3)
    noise[..., 0] = 0.5 + noise[..., 0] / 2
    found = mask_tokens(ids, mask, noise, CONFIG, VOCABULARY, 0.15)
    assert len(found.words) == 1
    assert ids[found.rows, found.columns].item() not in (0, 2, 3)


def test_nothing_to_hide_hides_nothing():
    ids = torch.tensor([[2, 3, 0]])
    found = mask_tokens(ids, torch.tensor([[1, 1, 0]]), torch.zeros(1, 3, 3), CONFIG, VOCABULARY, 0.15)
    assert len(found.words) == 0
    assert torch.equal(found.input_ids, ids)


def test_padding_changes_no_choice():
    ids, mask, noise = texts(rows=8)
    longer = torch.cat([ids, torch.zeros(8, 4, dtype=torch.long)], dim=1)
    more = torch.cat([noise, torch.zeros(8, 4, 3)], dim=1)
    plain = mask_tokens(ids, mask, noise, CONFIG, VOCABULARY, 0.3)
    padded = mask_tokens(longer, torch.cat([mask, torch.zeros_like(mask[:, :4])], dim=1), more, CONFIG, VOCABULARY, 0.3)
    assert torch.equal(plain.words, padded.words)
    assert torch.equal(plain.input_ids, padded.input_ids[:, :12])
