"""BLOOM and the processes that train it in parts, of notebooks/bloom.py."""

import copy
import os
import sys
import time
from functools import cache

import pytest
import torch
import transformers
from torch import distributed as dist
from torch import nn
from torch.distributed.pipelining import schedules
from torch.nn import functional as F
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

import networks
from loader import definitions
from workbench import counting

bloom = definitions("bloom")
ODD = (50, 2, 48, 6)  # vocabulary, depth, width, heads: no power of two


class Library(nn.Module):
    """BLOOM of transformers, its head tied, so that its tensors are as many as ours."""

    def __init__(self, vocabulary, depth, width, heads):
        super().__init__()
        config = transformers.BloomConfig(
            vocab_size=vocabulary, hidden_size=width, n_layer=depth, n_head=heads, use_cache=False
        )
        self.model = transformers.BloomModel(config)

    def forward(self, tokens):
        x = self.model(tokens).last_hidden_state
        return F.linear(x, self.model.word_embeddings.weight)


# ---- the model -----------------------------------------------------------------------------------


def test_bloom_has_the_parameters_of_its_card_and_the_products_of_a_sum_by_hand():
    with torch.device("meta"):
        network = bloom.Bloom(bloom.BLOOM_176B)
        theirs = bloom.reference(bloom.BLOOM_176B)
    assert counting.parameters(network) == counting.parameters(theirs) == 176_247_271_424
    T, D = 64, 14336
    found = counting.macs(network, torch.empty(1, T, dtype=torch.long, device="meta"))
    assert found == T * (70 * (12 * D * D + 2 * T * D) + 250_880 * D)


def test_with_the_same_weights_it_does_and_learns_what_that_of_transformers_does():
    torch.manual_seed(0)
    ours, theirs = bloom.Bloom(bloom.Size(*ODD)), Library(*ODD)
    tokens = torch.randint(50, (3, 17))
    networks.share_weights(ours, theirs)
    networks.same_outputs(ours, theirs, tokens)
    for network in (ours, theirs):
        torch.manual_seed(1)
        (network(tokens) * torch.randn(3, 17, 50)).sum().backward()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        networks.close(p.grad, q.grad, 1e-4, name)


def test_the_wrapper_of_transformers_gives_its_scores():
    theirs = bloom.reference(bloom.Size(*ODD)).eval()
    tokens = torch.randint(50, (2, 5))
    networks.close(bloom.Scores(theirs)(tokens), theirs(tokens).logits)
    assert theirs(tokens).logits.shape == (2, 5, 50)
    assert (theirs.config.n_layer, theirs.config.n_head) == ODD[1::2]


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 8, 112])
def test_slopes_are_those_of_transformers(heads):
    theirs = build_alibi_tensor(torch.ones(1, 2), heads, torch.float)[:, 0, 1]
    networks.close(bloom.alibi_slopes(heads), theirs)


def test_where_all_scores_are_equal_attention_falls_with_the_distance():
    attention = bloom.Attention(8, 2)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.zero_()
        attention.to_qkv.bias.view(2, 3, 4)[:, 2] = 0
        attention.to_qkv.weight.view(2, 3, 4, 8)[:, 2] = torch.eye(8).view(2, 4, 8)
        attention.to_out.weight.copy_(torch.eye(8))
    x = torch.randn(1, 5, 8)
    distance = torch.arange(4, -1, -1.0)
    for head, slope in enumerate((2**-4, 2**-8)):
        weights = torch.softmax(-slope * distance, dim=0)
        part = slice(4 * head, 4 * head + 4)
        networks.close(attention(x)[0, 4, part], weights @ x[0, :, part])


def test_scores_do_not_depend_on_what_comes_later():
    torch.manual_seed(0)
    network = bloom.Bloom(bloom.Size(*ODD))
    tokens = torch.randint(50, (2, 9))
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 50
    before, after = network(tokens), network(changed)
    networks.close(after[:, :5], before[:, :5])
    assert (after[:, 5:] - before[:, 5:]).abs().amin(dim=(0, 2)).min() > 0


def test_first_weights_have_the_deviation_of_the_notes_and_heads_must_divide():
    torch.manual_seed(0)
    network = bloom.Bloom(bloom.Size(400, 1, 96, 4))
    networks.starts_with(network.embedding.weight, (3 * 96) ** -0.5)
    networks.starts_with(network.blocks[0].mlp.up.weight, (3 * 96) ** -0.5)
    assert all(not p.any() for name, p in network.named_parameters() if name.endswith("bias"))
    with pytest.raises(AssertionError, match="n_heads must divide d_model"):
        bloom.Attention(10, 3)


def test_it_runs_forward_and_backward_on_the_meta_device():
    with torch.device("meta"):
        for kind in (bloom.Bloom, bloom.Checkpointed):
            network = kind(bloom.SMALL)
            network(torch.zeros(2, 7, dtype=torch.long)).sum().backward()
            assert all(p.grad is not None for p in network.parameters())


def test_one_batch_is_learnt():
    torch.manual_seed(0)
    network = bloom.Bloom(bloom.SMALL)
    optimizer = bloom.optimizer_of(network)
    batch = bloom.batches(3, steps=1)[0][:2]
    losses = [bloom.step(network, optimizer, batch) for _ in range(40)]
    assert losses[-1] < losses[0] / 10
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)
    assert optimizer.param_groups[0]["lr"] == 1e-2


def test_batches_are_pieces_of_text_that_a_number_chooses():
    data = bloom.batches(4)
    assert data.shape == (5, 8, 33)
    assert data.dtype == torch.long
    assert 0 < data.min() < data.max() < bloom.SMALL.vocabulary
    assert torch.equal(data, bloom.batches(4))
    assert not torch.equal(data, bloom.batches(5))
    words = "".join(map(chr, data[0, 0].tolist()))
    assert words in bloom.text.english().train


def test_the_loss_is_the_mean_over_all_tokens():
    scores = torch.zeros(2, 3, 5)
    scores[0, 0, 1] = 100
    targets = torch.ones(2, 3, dtype=torch.long)
    expected = 5 / 6 * torch.tensor(5.0).log()
    networks.close(bloom.next_token(scores, targets), expected)


# ---- devices -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def devices():
    """One fresh Python for all tests; in the end it and all that it has started are gone."""
    with pytest.MonkeyPatch.context() as patch:  # what these tests import, it can, too
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        machine = bloom.Devices()
    pids = [pid for _, _, pid in machine.run(2, bloom.hello)]
    yield machine
    assert machine.close() == 0
    for pid in [machine.server.pid, *pids]:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@cache
def few():
    return bloom.batches(0, steps=3)


@cache
def whole():
    return bloom.alone(few(), 0)


def test_devices_meet_and_are_gone_when_their_work_is_done(devices):
    answers = devices.run(3, bloom.hello)
    assert [answer[:2] for answer in answers] == [(0, 3), (1, 3), (2, 3)]
    for _, _, pid in answers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_an_exception_on_a_device_comes_back_and_ends_the_others(devices):
    def fails():
        if dist.get_rank() == 1:  # a device gets what the words stand for: none of the tests'
            raise ValueError("no weights here")
        dist.barrier()

    begun = time.monotonic()
    with pytest.raises(RuntimeError, match="on device 1: (?s:.*)ValueError: no weights here"):
        devices.run(2, fails)
    assert time.monotonic() - begun < 60
    assert [answer[:2] for answer in devices.run(2, bloom.hello)] == [(0, 1), (1, 1)]


def test_work_without_an_end_is_ended_by_its_limit(devices, tmp_path):
    def sleeps(folder):
        (folder / str(os.getpid())).touch()
        time.sleep(1000)

    with pytest.raises(RuntimeError, match="Empty"):
        devices.run(2, sleeps, tmp_path, limit=2.0)
    for path in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.name), 0)


class Nowhere:
    """What a device cannot make again."""

    def __reduce__(self):
        return __import__, ("no_such_module",)


def test_work_that_does_not_arrive_is_named_and_ends_nothing(devices):
    with pytest.raises(RuntimeError, match="no_such_module"):
        devices.run(1, Nowhere())
    assert devices.run(1, bloom.hello)[0][:2] == (0, 0)


def test_what_a_device_prints_does_not_stand_among_the_answers(devices):
    def speaks():
        print("a word", flush=True)
        return torch.get_num_threads()

    assert devices.run(2, speaks) == [1, 1]


NAMES = [
    "data parallel",
    "ZeRO, stage 1",
    "ZeRO, stage 3",
    "tensor parallel",
    "pipeline, GPipe",
    "pipeline, 1F1B",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_form_has_the_losses_of_one_process_and_holds_what_its_formula_says(devices, name):
    assert list(bloom.FORMS) == NAMES
    n, work, more = bloom.FORMS[name]
    losses, held = whole()
    answers = devices.run(n, work, few(), 0, *more)
    assert bloom.off(answers[-1][0], losses) < 1e-5
    if n == 4 and name.startswith("ZeRO"):
        assert answers[0][0] == answers[3][0]  # all know the mean
    counted = [[answer[1][kind] for kind in bloom.KINDS] for answer in answers]
    formula = bloom.expected(name, n)
    if name == "ZeRO, stage 1":
        assert sum(row[2] for row in counted) == held["states"]
        assert all(row[:2] == [held["weights"]] * 2 for row in counted)
        assert all(abs(row[2] / f[2] - 1) < 0.03 for row, f in zip(counted, formula))
    else:
        assert counted == [list(row) for row in formula]
    if name.startswith("pipeline"):
        pieces = [bloom.in_flight(name[10:], stage, 4, 8) for stage in range(4)]
        middle = [answers[stage][2] / pieces[stage] for stage in (1, 2)]
        assert middle[0] == middle[1]  # a block has the same size wherever it is
        each = 4 * bloom.kept_formula(1, 32, 64, 4)
        assert middle[0] == each
        assert answers[0][2] == pieces[0] * (each + 4 * 32 * (64 + 2))  # its norm's input


def test_one_process_holds_four_four_and_eight_bytes_for_a_parameter():
    losses, held = whole()
    parameters = counting.parameters(bloom.Bloom(bloom.SMALL))
    assert list(held.values()) == [4 * parameters, 4 * parameters, 8 * parameters]
    assert list(held) == list(bloom.KINDS)
    assert len(losses) == 3
    assert losses[-1] < losses[0]


def test_each_block_of_the_tensor_parallel_form_sends_two_sums_each_way(devices):
    tokens = few()[0][:, :-1]
    assert devices.run(2, bloom.messages, tokens) == [(8, 8), (8, 8)]


def test_wrong_slopes_pass_without_an_exception_and_change_the_losses(devices):
    found = devices.run(2, bloom.same_slopes, few(), 0)[0]
    assert 1e-4 < bloom.off(found, whole()[0]) < 0.1


def test_two_forms_together_have_the_losses_of_one_process(devices):
    answers = devices.run(4, bloom.both, few(), 0)
    losses, _ = whole()
    assert bloom.off(answers[0][0], losses) < 1e-5
    half = bloom.expected("tensor parallel", 2)[0][0] / 2
    assert [answer[1]["weights"] for answer in answers] == [half] * 4


# ---- stages and timetables -----------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 4])
def test_the_stages_one_after_the_other_are_the_model(n):
    torch.manual_seed(0)
    model = bloom.Bloom(bloom.SMALL)
    tokens = torch.randint(128, (2, 6))
    stages = [bloom.stage_of(model, rank, n) for rank in range(n)]
    x = tokens
    for stage in stages:
        x = stage(x)
    networks.close(x, model(tokens))
    assert sum(len(stage.blocks) for stage in stages) == 4
    both = sum(map(counting.parameters, stages))
    assert both == counting.parameters(model) + model.embedding.weight.numel()


@pytest.mark.parametrize(("p", "m"), [(2, 2), (4, 8), (4, 4), (3, 7)])
@pytest.mark.parametrize("kind", ["GPipe", "1F1B"])
def test_stages_do_what_they_do_in_torch_in_the_same_order(kind, p, m):
    """Torch numbers the forward passes of the last stage from 1, so theirs are compared by kind."""
    plan = object.__new__({"GPipe": schedules.ScheduleGPipe, "1F1B": schedules.Schedule1F1B}[kind])
    plan._num_stages, plan._n_microbatches = p, m
    for stage, actions in plan._get_pipeline_order().items():
        passes = [a for a in actions if a is not None and a.computation_type.value in "FB"]
        ours = bloom.order(kind, stage, p, m)
        assert [way for way, _ in ours] == [a.computation_type.value for a in passes]
        for way in "FB":
            assert [i for found, i in ours if found == way] == list(range(m))


def test_a_timetable_worked_out_by_hand():
    first = bloom.timetable("GPipe", 2, 2)
    starts = [("F", 0, 0), ("F", 1, 1)]
    assert [first[0, way, i] for way, i, _ in starts] == [0, 1]
    assert [first[1, "F", i] for i in (0, 1)] == [1, 2]
    assert [first[1, "B", i] for i in (0, 1)] == [3, 5]
    assert [first[0, "B", i] for i in (0, 1)] == [5, 7]
    second = bloom.timetable("1F1B", 2, 2)
    assert [second[1, "F", 0], second[1, "B", 0], second[1, "F", 1]] == [1, 2, 4]
    assert [second[0, "B", 0], second[0, "B", 1]] == [4, 7]


@pytest.mark.parametrize("kind", ["GPipe", "1F1B"])
@pytest.mark.parametrize(("p", "m"), [(4, 8), (2, 3), (5, 2), (1, 4)])
def test_the_bubble_has_the_share_of_the_formula(kind, p, m):
    assert bloom.bubble(kind, p, m) == pytest.approx((p - 1) / (m + p - 1))


def test_one_forward_one_backward_keeps_fewer_pieces():
    assert [bloom.in_flight("GPipe", stage, 4, 8) for stage in range(4)] == [8, 8, 8, 8]
    assert [bloom.in_flight("1F1B", stage, 4, 8) for stage in range(4)] == [4, 3, 2, 1]
    assert bloom.in_flight("1F1B", 0, 4, 2) == 2


def test_two_devices_together_hold_the_model_and_see_the_batch():
    for form in ("data", "tensor", "pipeline", "ZeRO"):
        (cells, texts), (others, later) = (bloom.holdings(form, number) for number in (0, 1))
        assert len(cells | others) == 16
        assert len(cells & others) == (16 if form == "data" else 0)
        assert texts | later == {0, 1, 2, 3}
        assert len(texts & later) == (4 if form in ("tensor", "pipeline") else 0)
    assert {column for _, column in bloom.holdings("tensor", 0)[0]} == {0, 1}
    assert {row for row, _ in bloom.holdings("pipeline", 0)[0]} == {0, 1}
    assert {row for row, _ in bloom.holdings("ZeRO", 0)[0]} == {0, 1, 2, 3}
    assert {(0, 0), (0, 1), (1, 2), (1, 3)} < bloom.holdings("ZeRO", 0)[0]


# ---- what is kept --------------------------------------------------------------------------------


@pytest.mark.parametrize(("B", "T", "D", "heads"), [(2, 32, 64, 4), (3, 7, 48, 6), (1, 40, 16, 1)])
def test_a_block_keeps_what_the_formula_says(B, T, D, heads):
    x = torch.randn(B, T, D, requires_grad=True)
    block = bloom.Block(D, heads)
    assert bloom.kept_by(block, x) == 4 * bloom.kept_formula(B, T, D, heads)


def test_a_meter_counts_storages_once_leaves_weights_out_and_falls_to_zero():
    layer = nn.Linear(3, 5)
    x = torch.randn(4, 3, requires_grad=True)
    meter = bloom.Meter(layer)
    with meter:
        y = layer(x) * x.sum() + layer(x)  # x is kept by both products
        assert meter.now == 4 * (4 * 3 + 4 * 5 + 1)
        z = y.sum()
    z.backward()
    assert meter.now == 0
    assert meter.most == 4 * (4 * 3 + 4 * 5 + 1)
    with meter:
        nn.functional.embedding(torch.arange(3), torch.randn(4, 2, requires_grad=True))
        torch.empty(2, device="meta", requires_grad=True).square()
        assert meter.now == 0
    assert x.grad is not None


def test_checkpoints_keep_inputs_change_nothing_and_cost_a_forward_pass():
    torch.manual_seed(0)
    plain = bloom.Bloom(bloom.SMALL)
    saving = bloom.Checkpointed(bloom.SMALL)
    saving.load_state_dict(plain.state_dict())
    tokens = torch.randint(128, (2, 16))
    networks.close(saving(tokens), plain(tokens))
    kept = bloom.kept_by(saving, tokens)
    inputs = 4 * 2 * 16 * 64  # bytes of the input of a block
    norms = 2 * 2 * 4 * 2 * 16  # of both ends: a mean and a deviation for each token
    assert kept == (4 + 3) * inputs + norms  # of four blocks, two norms and the head
    assert bloom.kept_by(plain, tokens) > 5 * kept
    forward = counting.macs(plain, tokens)
    assert bloom.step_macs(plain, tokens) == 3 * forward
    head = tokens.numel() * 64 * 128
    with bloom.set_checkpoint_early_stop(False):
        assert bloom.step_macs(saving, tokens) == 4 * (forward - head) + 3 * head
    for a, b in zip(plain.parameters(), saving.parameters()):
        networks.close(a.grad, b.grad)


# ---- the budget ----------------------------------------------------------------------------------


def test_the_budget_of_one_parameter_and_of_one_block():
    assert list(bloom.state_bytes(1, 1).values()) == [2, 2, 4, 12]
    assert list(bloom.state_bytes(10, 4).values()) == [20, 20, 40, 30]
    D = 14336
    block, norm = 12 * D * D + 13 * D, 2 * D
    assert bloom.first_stage(bloom.BLOOM_176B) == 250_880 * D + norm + 5 * block
    assert bloom.first_stage(bloom.BLOOM_176B, 2) == 250_880 * D + norm + 2 * block
    sbh = 2048 * 2 * D
    assert bloom.kept_bytes(bloom.BLOOM_176B, 4, saving=True) == 2 * sbh
    assert bloom.kept_bytes(bloom.BLOOM_176B, 1, saving=False) == sbh * 34 + 5 * 112 * 2048**2 * 2
    assert bloom.kept_bytes(bloom.BLOOM_176B, 4, saving=False) == sbh * 16 + 5 * 28 * 2048**2 * 2
    assert (bloom.GPUS, bloom.GPU, bloom.TOKENS) == (384, 80e9, 366e9)


def test_the_seconds_of_a_step_are_those_of_the_published_formula_and_of_the_log():
    """Narayanan et al. 2021, equation 3: 96 B s l h^2 (1 + s / 6h + V / 16lh)."""
    B, s, layers, h, V = 2048, 2048, 70, 14336, 250_880
    published = 96 * B * s * layers * h * h * (1 + s / (6 * h) + V / (16 * layers * h))
    macs = s * (layers * (12 * h * h + 2 * s * h) + V * h)
    assert bloom.step_flops(macs, bloom.BLOOM_176B) == pytest.approx(published)
    assert published / (bloom.GPUS * bloom.SPEED) == pytest.approx(104.70, rel=2e-3)


# ---- formats -------------------------------------------------------------------------------------


def test_lost_counts_zeros_infinities_and_what_is_not_a_number():
    found = torch.tensor([1.0, 0.0, 0.0, float("inf"), float("nan"), 2.0, -float("inf"), 3.0])
    exact = torch.tensor([1.0, 2.0, 0.0, 1.0, 1.0, 5.0, 1.0, 1.0])
    assert bloom.lost(found, exact) == 4 / 8


def test_the_factor_of_the_loss_is_taken_out_again_and_half_precision_loses_at_both_ends():
    torch.manual_seed(0)
    model = bloom.Bloom(bloom.SMALL)
    batch = few()[0]
    exact = bloom.gradient(model, torch.float32, 1.0, batch)
    networks.close(bloom.gradient(model, torch.float32, 64.0, batch), exact)
    assert len(exact) == counting.parameters(model)
    assert model.embedding.weight.grad is None  # a copy is used
    for factor in (2.0**-24, 2.0**32):
        assert bloom.lost(bloom.gradient(model, torch.float16, factor, batch), exact) > 0.9
        assert bloom.lost(bloom.gradient(model, torch.bfloat16, factor, batch), exact) < 1e-3


def test_most_weights_stay_where_they_are_in_bfloat16():
    batch = few()[0]
    assert bloom.moved(torch.float32, 6e-5, batch) > 0.99
    assert bloom.moved(torch.bfloat16, 6e-5, batch) < 0.4
    assert bloom.moved(torch.bfloat16, 1e-2, batch) > 0.9


def test_the_norm_takes_out_the_size_of_the_embedding():
    torch.manual_seed(0)
    model = bloom.Bloom(bloom.SMALL)
    tokens = torch.randint(128, (4, 30))
    size, behind = bloom.grown(copy.deepcopy(model), 1000, tokens)
    assert size == pytest.approx(1000 * model.embedding(tokens).std().item())
    assert behind == pytest.approx(1, abs=0.01)
