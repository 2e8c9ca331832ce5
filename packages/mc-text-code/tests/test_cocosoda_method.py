"""Whole steps of CoCoSoDa: against a float64 loop by the equations, its steps from plain contrast, and runs that are cut off."""

import copy

import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import cosine_similarity

from mc_core.engine import Progress
from mc_core.errors import ConfigError, DataError
from mc_core.files import read_jsonl
from mc_core.random import BatchRandom
from mc_testkit.toys import typed_token_pairs
from mc_text_code.code_recipe import resolve_code_recipe
from mc_text_code.code_training import prepare_code, train_code
from mc_text_code.data.code_data import CodeBatchOptions, CodeData
from mc_text_code.data.code_pairs import CodePair
from mc_text_code.methods.cocosoda.config import CoCoSoDaConfig
from mc_text_code.methods.cocosoda.model import CoCoSoDa
from mc_text_code.saving import load_encoder
from mc_text_code.soft_augment import draw_kinds, hide_names, soft_augment
from mc_text_code.tokenizers import train_tokenizer
from mc_text_code.type_tokens import add_type_tokens

TINY = {
    "vocabulary": 64,
    "hidden_size": 16,
    "layers": 2,
    "heads": 2,
    "positions": 32,
    "max_length": 16,
    "dropout": 0.0,
    "pooling": "mean",
}
IDS = tuple(range(47, 60))
B = 6


def build(seed=0, **fields):
    torch.manual_seed(seed)
    augment = {"token_ids": IDS, **fields.pop("augment", {})}
    given = {"queue_size": 15, **fields, "encoder": TINY, "augment": augment}
    return CoCoSoDa(CoCoSoDaConfig.model_validate(given))


def batch_of(rows, epoch=0):
    data = typed_token_pairs()
    return {**data.get_batch(list(rows), 0, 0), "index": torch.tensor(list(rows)), "epoch": epoch, "micro": 0}


def step(method, batch, progress, optimizer):
    optimizer.zero_grad()
    output = method.training_step(batch, progress, method.prepare_step([batch], progress))
    output.loss.backward()
    optimizer.step()
    with torch.no_grad():
        method.after_step(progress)
    progress.step += 1
    return output


def each_alone(encoder, ids, mask):
    """(B, D) unit rows: a text at a time, without padding."""
    rows = torch.cat([encoder(row[None, : int(m.sum())]) for row, m in zip(ids, mask, strict=True)])
    return rows / rows.norm(dim=1, keepdim=True)


def term(anchor, key, queue, i, left_out, tau):
    logits = [
        cosine_similarity(anchor[i], k, dim=0) / tau for j, k in enumerate(key) if j == i or not left_out[0][i][j]
    ]
    place = sum(1 for j in range(i) if not left_out[0][i][j])
    logits += [cosine_similarity(anchor[i], n, dim=0) / tau for m, n in enumerate(queue) if not left_out[1][i][m]]
    return torch.logsumexp(torch.stack(logits), 0) - logits[place]


@pytest.mark.parametrize("form", ["ours", "released"])
def test_four_steps_are_those_of_a_loop_by_the_equations(form):
    """θ, ξ and the queues by hand, in float64: one text and one candidate at a time, with pairs that come back."""
    rate, momentum, size = 0.05, 0.9, 15
    given = {"parity": "released", "temperature": 4.0} if form == "released" else {"temperature": 0.2}
    tau = 0.2
    method = build(momentum={"momentum": momentum}, queue_start="empty", augment={"hide_names": 0.5}, **given).double()
    by_hand = copy.deepcopy(method.encoder)
    slow = copy.deepcopy(by_hand)
    queues = {name: [] for name in ("code", "query", "online_code", "online_query")}
    held = []
    progress = Progress(0, 10, 1, B, run_seed=5)
    optimizer = torch.optim.SGD(method.parameter_groups(0.0), lr=rate)
    for number in range(4):
        rows = [(4 * number + i) % 14 for i in range(B)]
        batch = batch_of(rows, epoch=number)
        if number == 2:
            batch["query_ids"][1] = batch["query_ids"][4]  # one question, two functions
        output = step(method, batch, progress, optimizer)

        random = BatchRandom(5, number, batch["index"])
        kinds = draw_kinds(("dm", "dr", "drst", "dmst"), random)
        replacements = torch.tensor(IDS)
        code_ids = soft_augment(batch["code_input_ids"], batch["code_type_ids"], kinds, random, replacements)
        code_ids = hide_names(code_ids, batch["code_own_name"], random, replacements, 0.5)
        query_ids = soft_augment(
            batch["query_input_ids"], batch["query_type_ids"], torch.zeros(B).long(), random, replacements, stream=1
        )
        assert not torch.equal(code_ids, batch["code_input_ids"])
        code = each_alone(by_hand, batch["code_input_ids"], batch["code_attention_mask"])
        query = each_alone(by_hand, batch["query_input_ids"], batch["query_attention_mask"])
        with torch.no_grad():
            code_key = each_alone(slow, code_ids, batch["code_attention_mask"])
            query_key = each_alone(slow, query_ids, batch["query_attention_mask"])

        ids = list(zip(batch["code_ids"].tolist(), batch["query_ids"].tolist(), strict=True))
        apart = form == "released"
        left_out = [
            [[not apart and any(x == y for x, y in zip(a, b, strict=True)) for b in others] for a in ids]
            for others in (ids, held)
        ]
        kept_code, kept_query = (
            queues["online_code" if apart else "code"],
            queues["online_query" if apart else "query"],
        )
        blocks = [
            (code, query, kept_query),
            (code, query_key, queues["query"]),
            (query, code, kept_code),
            (query, code_key, queues["code"]),
            (code, code_key, queues["code"]),
            (query, query_key, queues["query"]),
        ]
        terms = [[term(a, k, n, i, left_out, tau) for i in range(B)] for a, k, n in blocks]
        loss = torch.stack([torch.stack(block).mean() for block in terms]).mean()
        torch.testing.assert_close(output.loss, loss, rtol=1e-9, atol=1e-9)

        by_hand.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in by_hand.parameters():
                parameter -= rate * parameter.grad
            for ours, theirs in zip(slow.parameters(), by_hand.parameters(), strict=True):
                ours.copy_(momentum * ours + (1 - momentum) * theirs)
        for name, part in (("code", code_key), ("query", query_key), ("online_code", code), ("online_query", query)):
            queues[name] = (queues[name] + list(part.detach()))[-size:]
        held = (held + ids)[-size:]

    assert set(method.queues) == (set(queues) if form == "released" else {"code", "query"})
    for name, queue in method.queues.items():
        features, ids_held = queue.in_order()
        torch.testing.assert_close(features, torch.stack(queues[name]), rtol=1e-8, atol=1e-9)
        assert ids_held.tolist() == [pair[0 if name.endswith("code") else 1] for pair in held]
    for ours, theirs in zip(method.momentum_encoder.module.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)
    for ours, theirs in zip(method.encoder.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("parity", ["ours", "released"])
def test_keys_are_the_slow_copy_s_without_dropout_and_anchors_have_dropout(parity, monkeypatch):
    monkeypatch.setitem(TINY, "dropout", 0.5)
    method, batch, progress = build(parity=parity).train(), batch_of(range(B)), Progress(0, 10, 1, B)
    first, again = method.keys(batch, progress), method.keys(batch, progress)
    code_ids, _ = method.augmented(batch, progress)
    plain = method.momentum_encoder.module.eval()(code_ids, batch["code_attention_mask"])
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one, other)
        assert not one.requires_grad
    torch.testing.assert_close(first[0], plain / plain.norm(dim=1, keepdim=True))
    assert not torch.equal(method.embed(batch)[0], method.embed(batch)[0])


def test_released_queues_begin_as_random_unit_rows():
    method = build(parity="released", temperature=0.07)
    assert set(method.queues) == {"code", "query", "online_code", "online_query"}
    features = [queue.features for queue in method.queues.values()]
    assert all(len(rows) == 15 for rows in features)
    torch.testing.assert_close(torch.cat(features).norm(dim=1), torch.ones(60))
    assert not features[0].equal(features[1])
    other = build(seed=3, parity="released", temperature=0.07)
    assert other.queues["code"].features.equal(features[0])  # of a seed of their own
    assert not len(build().queues["code"])


def test_the_steps_from_plain_contrast():
    """What each switch adds is there, and nothing else."""
    none = {"kinds": (), "query": False}
    plain = build(queue_size=0, momentum_keys=False)
    assert plain.momentum_encoder is None
    assert not plain.queues
    assert plain.config.block_weights == (1, 0, 1, 0, 0, 0)
    batch, progress = batch_of(range(B)), Progress(0, 10, 1, B)
    queued = build(augment=none, intra_modal=False)
    assert torch.equal(queued.augmented(batch, progress)[0], batch["code_input_ids"])
    assert queued.config.block_weights == (1, 1, 1, 1, 0, 0)
    soft = build(intra_modal=False)
    code, query = soft.augmented(batch, progress)
    assert (code != batch["code_input_ids"]).any(1).all()
    assert (query != batch["query_input_ids"]).any(1).all()
    assert (query[query != batch["query_input_ids"]] == IDS[0]).all()  # questions are masked, nothing else
    named = build(augment={"kinds": (), "hide_names": 1.0})
    hidden = named.augmented(batch, progress)[0] != batch["code_input_ids"]
    assert torch.equal(hidden, batch["code_own_name"] & (batch["code_input_ids"] != IDS[2]))


def test_the_first_step_of_all_forms_without_keys_is_the_same():
    """With an empty queue and keys that are the batch itself, blocks 2 and 4 equal 1 and 3."""
    batch = batch_of(range(B))
    plain = build(queue_size=0, momentum_keys=False).eval()
    queued = build(augment={"kinds": (), "query": False}, intra_modal=False).eval()
    losses = [method.training_step(batch, Progress(0, 10, 1, B)).loss for method in (plain, queued)]
    torch.testing.assert_close(*losses)


def test_only_keys_of_the_same_language_are_negatives():
    method = build(same_language=True, exclude_same=False)
    queue_code = torch.tensor([256 * 90, 256 * 91 + 1, 256 * 92])
    for name, ids in (("code", queue_code), ("query", torch.arange(3) + 900)):
        method.queues[name].enqueue(torch.eye(16)[:3], ids)
    code_ids, query_ids = torch.tensor([256 * 3, 256 * 4 + 1]), torch.arange(2)
    same, queue_same = method._left_out(code_ids, query_ids)
    assert same is None
    assert queue_same.tolist() == [[False, True, False], [True, False, True]]


def test_one_kind_a_step_or_one_a_sample():
    batch = batch_of(range(24))
    for per, most in (("step", 1), ("sample", 2)):
        method = build(augment={"kinds": ("dm", "dr"), "per": per})
        becomes = []
        for number in range(6):
            code, _ = method.augmented(batch, Progress(number, 10, 1, 24))
            hit = code != batch["code_input_ids"]
            becomes.append(len({bool(row[mask].eq(IDS[0]).any()) for row, mask in zip(code, hit, strict=True)}))
        assert max(becomes) == most
        assert min(becomes) == most


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"queue_size": 8, "momentum_keys": False}, "needs momentum_keys"),
        ({"parity": "released", "queue_size": 0}, "needs queues"),
        (
            {"weights": dict.fromkeys(("code_query", "query_code"), 0), "momentum_keys": False, "queue_size": 0},
            "weight 0",
        ),
        ({"augment": {"token_ids": (1, 2)}}, "takes 13"),
        ({"parity": "released", "same_language": True}, "no same_language"),
    ],
)
def test_settings_that_cannot_work(fields, said):
    with pytest.raises(ValidationError, match=said):
        CoCoSoDaConfig.model_validate(fields)


def test_augmentation_without_tokens_says_so():
    with pytest.raises(ConfigError, match=r"augment\.token_ids"):
        CoCoSoDa(CoCoSoDaConfig.model_validate({"encoder": TINY}))
    with pytest.raises(ConfigError, match="1 pair"):
        build().check(1)


def pairs_of(count=48, languages=("python",)):
    verbs, nouns = ("read", "write", "close", "merge", "sort", "count"), ("file", "graph", "user", "token", "cache")
    made = []
    for i in range(count):
        verb, noun = verbs[i % 6], nouns[i // 6 % 5]
        code = f"def {verb}_{noun}_{i}(source):\n    # {verb}\n    return [{noun}.{verb}({i}) for {noun} in source]"
        made.append(
            CodePair(f"{verb} each {noun} of source {i}", code, languages[i % len(languages)], f"{verb}_{noun}_{i}")
        )
    return made


def small_recipe(**changes):
    fit = {
        "steps": 6,
        "batch_size": 8,
        "log_every": 1,
        "checkpoint_every": 2,
        "device": "cpu",
        **changes.pop("fit", {}),
    }
    encoder = {"hidden_size": 16, "heads": 2, "layers": 1, "max_length": 48}
    return resolve_code_recipe(
        "cocosoda-laptop", {"fit": fit, "method": {"encoder": encoder, "queue_size": 16, **changes}}
    )


class _CutOff(Exception):
    pass


def test_a_run_that_is_cut_off_ends_in_the_same_weights(tmp_path, monkeypatch):
    pairs = pairs_of()
    recipe = small_recipe(augment={"hide_names": 0.5})
    whole = train_code(recipe, pairs, tmp_path / "whole")
    after_step = CoCoSoDa.after_step

    def cut(self, progress):
        after_step(self, progress)
        if progress.step == 4:
            raise _CutOff

    monkeypatch.setattr(CoCoSoDa, "after_step", cut)
    with pytest.raises(_CutOff):
        train_code(recipe, pairs, tmp_path / "cut")
    monkeypatch.undo()
    assert load_encoder(tmp_path / "cut").encode(["read"]).shape == (1, 16)  # an unfinished run can be used
    resumed = train_code(recipe, pairs, tmp_path / "cut")
    assert resumed.resumed_from == 4
    ours, theirs = whole.method.state_dict(), resumed.method.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    losses = [
        [line["loss"] for line in read_jsonl(tmp_path / run / "metrics.jsonl") if "loss" in line]
        for run in ("whole", "cut")
    ]
    assert losses[0] == losses[1]
    loaded = load_encoder(tmp_path / "whole")
    texts = ["read each file", "def read(source): pass"]
    assert (loaded.encode(texts) == whole.method.encoder.eval().encode(texts)).all()
    assert "CoCoSoDa" in (tmp_path / "whole" / "model" / "README.md").read_text()


def test_a_model_of_a_run_can_be_fine_tuned(tmp_path):
    """The second stage: from the first stage's model, in-batch contrast of the question among functions."""
    pairs = pairs_of()
    train_code(small_recipe(), pairs, tmp_path / "first")
    changes = {
        "method": {"encoder": {"name": str(tmp_path / "first" / "model"), "max_length": 48}},
        "batches": {"query_length": 24},
        "fit": {"steps": 2, "batch_size": 8, "device": "cpu"},
    }
    recipe = resolve_code_recipe("cocosoda-finetune", changes)
    encoder, _ = prepare_code(recipe, pairs, tmp_path / "second")
    assert (encoder.encode(["read"]) == load_encoder(tmp_path / "first").encode(["read"])).all()
    found = train_code(recipe, pairs, tmp_path / "second")
    assert found.method.momentum_encoder is None
    assert found.method.config.block_weights == (0, 0, 1, 0, 0, 0)


def test_data_that_is_too_little_leaves_nothing_behind(tmp_path):
    with pytest.raises(ConfigError, match="batch_size 8 is larger"):
        train_code(small_recipe(), pairs_of(5), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(DataError, match="1 pair to train on"):
        CodeData(pairs_of(1), train_tokenizer(["a b"], 64))


def test_batches_of_one_language_by_a_power_of_its_size():
    pairs = pairs_of(600, ("python", "python", "python", "python", "ruby"))
    tokenizer = add_type_tokens(train_tokenizer([pair.code for pair in pairs[:50]], 128))
    data = CodeData(pairs, tokenizer, 16, CodeBatchOptions(one_language=True, language_exponent=0.5))
    order = torch.randperm(600, generator=torch.Generator().manual_seed(0)).numpy()
    arranged = [data.arrange(order, epoch=epoch, batch_size=20, seed=0) for epoch in range(40)]
    assert all(len(one) == 600 for one in arranged)
    spoken = [pairs[row].language for one in arranged for row in one]
    batches = [spoken[first : first + 20] for first in range(0, len(spoken), 20)]
    assert all(len(set(batch)) == 1 for batch in batches)
    share = sum(batch[0] == "ruby" for batch in batches) / len(batches)
    assert abs(share - 1 / 3) < 0.05  # √120 / (√120 + √480)
    assert (arranged[3] == data.arrange(order, epoch=3, batch_size=20, seed=0)).all()
    mixed = CodeData(pairs, tokenizer, 16)
    assert (mixed.arrange(order, epoch=0, batch_size=20, seed=0) == order).all()


def test_shipped_recipes_are_what_their_sources_say():
    paper, released = resolve_code_recipe("cocosoda"), resolve_code_recipe("cocosoda-released")
    tuned, laptop = resolve_code_recipe("cocosoda-finetune"), resolve_code_recipe("cocosoda-laptop")
    in_batch = resolve_code_recipe("in-batch-laptop")
    for recipe in (paper, released):
        assert (recipe.fit.steps, recipe.fit.batch_size, recipe.fit.lr, recipe.fit.weight_decay) == (
            100_000,
            128,
            2e-5,
            0.01,
        )
        assert (recipe.method.momentum.momentum, recipe.batches.query_length) == (0.999, 128)
        assert recipe.method.encoder.max_length == 256
    assert (paper.method.queue_size, released.method.queue_size) == (4096, 1024)
    assert abs(released.method.true_temperature - 0.0035) < 1e-12
    assert released.method.block_weights == (1, 1, 1, 1, 0, 0)
    assert (tuned.fit.epochs, tuned.method.queue_size, tuned.method.temperature) == (5, 0, 0.05)
    assert in_batch.method.encoder == laptop.method.encoder
    assert in_batch.fit == laptop.fit
    assert in_batch.method.block_weights == (1, 0, 1, 0, 0, 0)
    with pytest.raises(ConfigError, match="learns from sentences"):
        resolve_code_recipe("esimcse")
