# SPDX-License-Identifier: Apache-2.0
"""From slots to one embedding per field: pooling against loops in float64, and ids that are dropped in training."""

import math

import pytest
import torch
from equations import assert_equal, dot, random

from flip_hf import FlipConfig, FlipForCTR, FlipTabularModel
from flip_hf.modeling_flip_tabular import FeatureEmbedding, IdDropout, SlotPooling


D = 6
FIELDS = [
    {"name": "a"},
    {"name": "mean", "kind": "multivalued", "num_slots": 3, "pooling": "mean"},
    {"name": "text", "num_slots": 0},
    {"name": "sum", "kind": "multivalued", "num_slots": 2, "pooling": "sum"},
    {"name": "attention", "kind": "multivalued", "num_slots": 3, "pooling": "attention"},
    {"name": "hashed", "kind": "multivalued", "num_slots": 2, "hash_buckets": 4},
    {"name": "number", "kind": "numeric"},
]
SLOTS = {0: [0], 1: [1, 2, 3], 3: [4, 5], 4: [6, 7, 8], 5: [9, 10], 6: [11]}
# full, partly padded, one value, and a field that is padding altogether
IDS = torch.tensor(
    [
        [20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31],
        [20, 21, 22, 0, 24, 0, 26, 27, 0, 29, 0, 31],
        [20, 21, 0, 0, 24, 0, 26, 0, 0, 29, 0, 31],
        [20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 31],
    ]
)


def make_pooling(dtype=torch.float64):
    config = FlipConfig(fields=FIELDS, num_features=40, feature_embedding_size=D)
    pooling = SlotPooling(config).to(dtype)
    pooling.queries.data = random(6, D, seed=5).to(dtype)
    return pooling


def slow_pooling(row, ids, queries):
    """Slots of a row `(S, size)` -> one vector for each field."""
    pooled = []
    for position, (field, slots) in enumerate(SLOTS.items()):
        real = [slot for slot in slots if int(ids[slot]) != 0]
        how, scores = FIELDS[field].get("pooling", "mean"), [1.0] * len(real)
        if how == "attention":
            scores = [math.exp(dot(row[slot, :D], queries[position]) / math.sqrt(D)) for slot in real]
        total = 1.0 if how == "sum" else sum(scores)
        pooled.append([dot([score / total for score in scores], row[real, i]) for i in range(row.shape[1])])
    return pooled


def test_slots_are_pooled_as_a_loop_does_and_padding_is_left_out():
    pooling = make_pooling().requires_grad_(False)
    embeddings, first_order = random(4, 12, D, seed=1), random(4, 12, seed=2)
    rows = torch.cat([embeddings, first_order[:, :, None]], dim=2)  # the last of them first-order weights
    pooled, weights = pooling(embeddings, first_order, IDS)
    expected = [slow_pooling(*row, pooling.queries) for row in zip(rows, IDS, strict=True)]
    assert_equal(torch.cat([pooled, weights[:, :, None]], dim=2), expected)
    # what stands in padded slots is not read, however large
    embeddings[IDS == 0] = 1e9
    first_order[IDS == 0] = -1e9
    again, weights_again = pooling(embeddings, first_order, IDS)
    assert torch.equal(again, pooled) and torch.equal(weights_again, weights)
    assert pooling(embeddings, None, IDS)[1] is None


def test_gradients_of_pooling_are_those_of_finite_differences_and_padding_gets_none():
    pooling = make_pooling()
    embeddings, first_order = random(4, 12, D, seed=1).requires_grad_(), random(4, 12, seed=2).requires_grad_()

    def both(embeddings, first_order, queries):
        return torch.func.functional_call(pooling, {"queries": queries}, (embeddings, first_order, IDS))

    queries = pooling.queries.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(both, (embeddings, first_order, queries))
    pooled, weights = pooling(embeddings, first_order, IDS)
    (pooled.sum() + weights.sum()).backward()
    assert not embeddings.grad[IDS == 0].any() and not first_order.grad[IDS == 0].any()
    assert torch.isfinite(pooling.queries.grad).all()
    of_attention = torch.arange(6) == 3
    assert pooling.queries.grad[of_attention].any() and not pooling.queries.grad[~of_attention].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_attention_of_large_scores_stays_finite_in_every_precision(dtype):
    pooling = make_pooling(dtype)
    embeddings = (random(4, 12, D, seed=1) * 60).to(dtype).requires_grad_()
    pooled, _ = pooling(embeddings, None, IDS)
    pooled.float().sum().backward()
    assert pooled.dtype == dtype and torch.isfinite(pooled).all() and torch.isfinite(embeddings.grad).all()


def test_the_tower_reads_fields_of_several_slots_and_attention_starts_as_the_mean():
    torch.manual_seed(0)
    model = FlipTabularModel(FlipConfig(fields=FIELDS, num_features=40, tabular_initializer_range=0.3)).eval()
    embeddings = random(4, 12, D, seed=1).float()[..., :1].expand(4, 12, 32)
    pooled, _ = model.slot_pooling(embeddings, None, IDS)
    torch.testing.assert_close(pooled[0, 3], embeddings[0, 6:9].mean(0))
    torch.nn.init.normal_(model.slot_pooling.queries)
    logit = model(IDS).logit
    assert logit.shape == (4,) and torch.isfinite(logit).all()
    # the order inside a field does not matter, and neither does padding between the values
    torch.testing.assert_close(model(IDS[:, [0, 3, 1, 2, 5, 4, 8, 6, 7, 10, 9, 11]]).logit, logit)
    # and a value alone is one slot of the same embedding: attention to it is 1
    alone = IDS[2].clone()
    alone[[1, 2]] = alone[[2, 1]]
    torch.testing.assert_close(model(alone[None]).logit[0], logit[2])


def test_a_click_model_is_exported_and_traced_for_batches_of_every_size():
    torch.manual_seed(0)
    config = FlipConfig(fields=FIELDS, num_features=40, mode="tabular", tabular_initializer_range=0.3)
    model = FlipForCTR(config).eval()
    torch.nn.init.normal_(model.flip.tabular.slot_pooling.queries)
    with torch.no_grad():
        shapes = {"feature_ids": {0: torch.export.Dim("batch")}}
        exported = torch.export.export(model, (), {"feature_ids": IDS[:3]}, dynamic_shapes=shapes).module()
        traced = torch.jit.trace(model, example_kwarg_inputs={"feature_ids": IDS[:3]}, strict=False)
        for ids in (IDS, IDS[:1], IDS.repeat(5, 1)):
            torch.testing.assert_close(traced(feature_ids=ids)["logits"], model(feature_ids=ids).logits)
            torch.testing.assert_close(exported(feature_ids=ids)["logits"], model(feature_ids=ids).logits)


def test_dropped_ids_are_unseen_values_of_their_field_and_numbers_hashes_and_padding_stay():
    config = FlipConfig(fields=FIELDS, num_features=40, id_dropout=0.25)
    layer = IdDropout(config).train()
    ids = IDS[1:2].repeat(20_000, 1)
    torch.manual_seed(0)
    dropped = layer(ids)
    assert dropped.dtype == ids.dtype and torch.equal(ids[0], IDS[1])
    unseen = torch.tensor([2, 4, 4, 4, 8, 8, 10, 10, 10, 0, 0, 0])
    changed = dropped != ids
    assert torch.equal(dropped[changed], unseen.expand_as(ids)[changed])
    shares = changed.float().mean(0)
    expected = torch.tensor([0.25, 0.25, 0.25, 0, 0.25, 0, 0.25, 0.25, 0, 0, 0, 0])
    torch.testing.assert_close(shares, expected, atol=0.016, rtol=0)  # five standard errors
    assert torch.equal(layer.eval()(ids), ids)
    # reserved ids are what they are: missing values stay missing, masked ones masked
    reserved = torch.tensor([[3, 1, 4, 0, 9, 1, 11, 1, 0, 13, 0, 15]])
    assert torch.equal(layer.train()(reserved.repeat(500, 1)), reserved.repeat(500, 1))


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_a_lookup_and_its_gradient_are_those_of_nn_embedding(size, dtype):
    ours = FeatureEmbedding(9, size)
    theirs = torch.nn.Embedding(9, size, padding_idx=0)
    theirs.load_state_dict(ours.state_dict())
    ids = torch.tensor([[1, 3, 3], [0, 8, 3], [0, 1, 5]], dtype=dtype)
    seen = random(3, 3, size, seed=1).float()
    for table in (ours, theirs):
        (table(ids) * seen).sum().backward()
    assert torch.equal(ours(ids), theirs(ids))
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    assert not ours.weight.grad[0].any() and ours.weight.grad[3].any()
    with torch.no_grad():
        assert torch.equal(ours(ids), theirs(ids))
    for outside in (9, -1):
        with pytest.raises(IndexError):
            ours(torch.tensor([[outside]]))
