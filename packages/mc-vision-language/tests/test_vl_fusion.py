"""Fusion layers against BERT's own, and what shared keys, two images, padding and causality must and must not change."""

import pytest
import torch
from torch.nn.functional import gelu, layer_norm

from mc_core.errors import ConfigError, DataError
from mc_vision_language.fusion import FusionEncoder, FusionLayer, ImageKeys, KeyValue, self_mask

B, L, N, H, HIDDEN, WIDTH = 3, 6, 5, 2, 8, 12
MASK = torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]])


@pytest.fixture
def fusion():
    torch.manual_seed(0)
    model = FusionEncoder(HIDDEN, H, 4 * HIDDEN, WIDTH, layers=3).double().eval()
    for parameter in model.parameters():  # BERT's small weights would hide what is wrong
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(B, L, HIDDEN, generator=generator, dtype=torch.float64)
    image = torch.randn(B, N, WIDTH, generator=generator, dtype=torch.float64)
    return states, image


def literal_layer(layer: FusionLayer, states, image, mask):
    """One text of a batch after the other, head by head."""

    def attend(part, query, seen, allowed):
        q, k, v = part.query(query), part.key(seen), part.value(seen)
        size = HIDDEN // H
        heads = []
        for h in range(H):
            cut = slice(h * size, (h + 1) * size)
            scores = q[:, cut] @ k[:, cut].T / size**0.5
            scores[:, ~allowed] = -torch.inf
            heads.append(scores.softmax(1) @ v[:, cut])
        return part.output(torch.cat(heads, dim=1))

    made = []
    for b in range(len(states)):
        x, everything = states[b], torch.ones(len(image[b]), dtype=torch.bool)
        x = layer.self_norm(x + attend(layer.self_attention, x, x, mask[b].bool()))
        x = layer.cross_norm(x + attend(layer.cross_attention, x, image[b], everything))
        made.append(layer.norm(x + layer.outer(gelu(layer.inner(x)))))
    return torch.stack(made)


def test_a_stack_equals_the_layers_by_definition(fusion, inputs):
    states, image = inputs
    expected = states
    for layer in fusion.layers:
        expected = literal_layer(layer, expected, image, MASK)
    found = fusion(states, MASK, fusion.keys(image))
    torch.testing.assert_close(found[MASK.bool()], expected[MASK.bool()], rtol=0, atol=1e-9)


def test_self_attention_and_feed_forward_are_those_of_bert(inputs):
    """With weights of a BERT layer and nothing to see, a fusion layer is that layer."""
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertLayer

    torch.manual_seed(0)
    config = BertConfig(hidden_size=HIDDEN, num_attention_heads=H, intermediate_size=16, num_hidden_layers=1)
    config._attn_implementation = "eager"
    bert = BertLayer(config).double().eval()
    ours = FusionLayer(HIDDEN, H, 16, WIDTH).double().eval()
    ours.load_bert_layer(bert)
    torch.nn.init.zeros_(ours.cross_attention.output.weight)
    torch.nn.init.zeros_(ours.cross_attention.output.bias)
    ours.cross_norm = torch.nn.Identity()
    states, image = inputs
    additive = (1 - MASK[:, None, None].double()) * -1e9
    theirs = bert(states, attention_mask=additive)
    theirs = theirs[0] if isinstance(theirs, tuple) else theirs
    found = ours(states, self_mask(MASK, L), ours.cross_attention.project(image))
    torch.testing.assert_close(found[MASK.bool()], theirs[MASK.bool()], rtol=0, atol=1e-9)


@pytest.mark.parametrize("padded", [True, False])
def test_every_token_sees_what_follows_it(fusion, inputs, padded):
    """Also where no token of the batch is padding: transformers' own layers turn causal there."""
    states, image = inputs
    mask = MASK if padded else torch.ones_like(MASK)
    keys = fusion.keys(image)
    before = fusion(states, mask, keys)
    changed = states.clone()
    changed[0, 5] += 1
    after = fusion(changed, mask, keys)
    assert (after[0, 0] - before[0, 0]).abs().max() > 1e-4
    torch.testing.assert_close(after[1:], before[1:], rtol=0, atol=0)


def test_a_text_is_the_same_beside_longer_ones(fusion, inputs):
    states, image = inputs
    together = fusion(states, MASK, fusion.keys(image))
    for b, length in enumerate(MASK.sum(1).tolist()):
        alone = fusion(states[b : b + 1, :length], None, fusion.keys(image[b : b + 1]))
        torch.testing.assert_close(together[b : b + 1, :length], alone, rtol=0, atol=1e-12)


def test_rows_of_shared_keys_equal_separate_passes(fusion, inputs):
    states, image = inputs
    texts, images = torch.tensor([0, 1, 2, 0, 2]), torch.tensor([0, 1, 2, 2, 2])
    keys = fusion.keys(image)
    fused = fusion(states[texts], MASK[texts], keys.take(images))
    for row, (t, i) in enumerate(zip(texts.tolist(), images.tolist(), strict=True)):
        alone = fusion(states[t : t + 1], MASK[t : t + 1], fusion.keys(image[i : i + 1]))
        torch.testing.assert_close(fused[row : row + 1], alone, rtol=0, atol=1e-12)


def test_the_first_token_alone_is_the_same(fusion, inputs):
    states, image = inputs
    keys = fusion.keys(image)
    whole = fusion(states, MASK, keys)
    first = fusion(states, MASK, keys, first=True)
    assert first.shape == (B, 1, HIDDEN)
    torch.testing.assert_close(first, whole[:, :1], rtol=0, atol=1e-12)


def test_causal_layers_look_back_alone(fusion, inputs):
    states, image = inputs
    keys = fusion.keys(image)
    before = fusion(states, None, keys, causal=True)
    changed = states.clone()
    changed[:, 4] += 1
    after = fusion(changed, None, keys, causal=True)
    torch.testing.assert_close(after[:, :4], before[:, :4], rtol=0, atol=0)
    assert (after[:, 5] - before[:, 5]).abs().max() > 1e-4
    first = fusion(states[:, :1], None, keys, causal=True)
    torch.testing.assert_close(before[:, :1], first, rtol=0, atol=1e-12)


def test_masked_keys_are_not_looked_at(fusion, inputs):
    states, image = inputs
    mask = torch.tensor([[1, 1, 1, 0, 0]]).expand(B, N)
    found = fusion(states, MASK, fusion.keys(image, mask=mask))
    short = fusion(states, MASK, fusion.keys(image[:, :3]))
    torch.testing.assert_close(found, short, rtol=0, atol=1e-12)
    taken = fusion.keys(image, mask=mask).take(torch.tensor([2, 0]))
    assert taken.mask is not None
    assert taken.mask.tolist() == mask[:2].bool().tolist()


def test_of_two_images_layers_look_at_each_in_turn(fusion, inputs):
    states, image = inputs
    other = image.flip(0) + 1
    expected = states
    for place, layer in enumerate(fusion.layers):
        seen = layer.cross_attention.project(image if place % 2 == 0 else other)
        expected = layer(expected, self_mask(MASK, L), seen)
    torch.testing.assert_close(fusion(states, MASK, fusion.keys(image, other)), expected, rtol=0, atol=0)


@pytest.mark.parametrize("layer", [0, 2, -1])
def test_attention_on_request_changes_no_state_and_is_in_the_graph(fusion, inputs, layer):
    states, image = inputs
    keys = fusion.keys(image)
    plain = fusion(states, MASK, keys)
    found, attention = fusion(states, MASK, keys, attention_of=layer)
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-12)
    assert attention.shape == (B, H, L, N)
    torch.testing.assert_close(attention.sum(-1), torch.ones(B, H, L, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(found[:, 0].square().sum(), attention)
    assert gradient.abs().max() > 0
    # by definition, from the state that enters the cross-attention of the first layer
    if layer == 0:
        first = fusion.layers[0]
        entering = first.self_norm(
            states + first.self_attention(states, first.self_attention.project(states), self_mask(MASK, L))
        )
        q = first.cross_attention.query(entering)[1, 2, :4]
        k = first.cross_attention.key(image)[1, :, :4]
        torch.testing.assert_close(attention[1, 0, 2], (k @ q / 2).softmax(0), rtol=0, atol=1e-12)


def test_dropout_acts_while_training_alone(inputs):
    states, image = inputs
    fusion = FusionEncoder(HIDDEN, H, 16, WIDTH, layers=1, dropout=0.5).double()
    keys = fusion.keys(image)
    assert not torch.equal(fusion(states, MASK, keys), fusion(states, MASK, keys))
    fusion.eval()
    assert torch.equal(fusion(states, MASK, keys), fusion(states, MASK, keys))


def test_new_weights_are_as_berts():
    fusion = FusionEncoder(768, 4, 64, 96, layers=2)
    assert fusion.layers[0].cross_attention.key.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert all((p == 0).all() for name, p in fusion.named_parameters() if name.endswith("bias"))
    x = torch.randn(2, 768)
    torch.testing.assert_close(fusion.layers[1].norm(x), layer_norm(x, (768,), eps=1e-12))


class TestBadInput:
    def test_keys_of_another_number_of_rows(self, fusion, inputs):
        states, image = inputs
        with pytest.raises(DataError, match="3 texts with keys of 2 images"):
            fusion(states, MASK, fusion.keys(image[:2]))

    def test_no_such_layer(self, fusion, inputs):
        states, image = inputs
        with pytest.raises(DataError, match="fusion layer 3: there are 3"):
            fusion(states, MASK, fusion.keys(image), attention_of=3)

    def test_heads_that_do_not_divide(self):
        with pytest.raises(ConfigError, match="8 features do not divide into 3"):
            FusionEncoder(8, 3, 16, 8, layers=1)

    def test_weights_of_another_kind(self, fusion):
        with pytest.raises(ConfigError, match="is no BERT layer"):
            fusion.layers[0].load_bert_layer(torch.nn.Linear(2, 2))
        with pytest.raises(ConfigError, match="1 BERT layers for 3"):
            fusion.load_bert_layers([None])


def test_keys_know_their_length():
    key = torch.zeros(4, 1, 2, 3)
    assert len(FusionEncoder(4, 1, 8, 6, layers=1).keys(torch.zeros(4, 2, 6))) == 4
    assert KeyValue(key, key).key is key


def test_gradients_of_repeated_rows_do_not_depend_on_the_order_of_threads():
    """Plain indexing adds repeated rows up in an order that varies from call to call, and a run would not end in the same bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        key = torch.randn(64, 17, 64, requires_grad=True)
        rows, pull = torch.randint(0, 64, (192,)), torch.randn(192, 17, 64)
        taken = [ImageKeys((KeyValue(key, key),)).take(rows).layers[0].key for _ in range(30)]
        found = {torch.autograd.grad(one, key, pull)[0].numpy().tobytes() for one in taken}
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1
