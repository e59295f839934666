"""The U-Net, the schedules and the samplers of notebooks/diffusion.py."""

import copy
import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from torch import nn

import networks
from loader import definitions
from networks import on_meta, parameters_of

diffusion = definitions("diffusion")

BETAS = {"linear": "linear_betas", "cosine": "cosine_betas"}
IN_LIBRARY = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
# The hub's config.json of google/ddpm-cifar10-32; the rest are the defaults of the library.
PUBLISHED = {
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}


def small_size(**how):
    settings = {"widths": (8, 16, 16), "attention": (False, True, False), "groups": 4}
    return diffusion.Size(**(settings | {"blocks": 2, "channels": 2} | how))


def random_weights(network: nn.Module) -> nn.Module:
    """No zero or one hides a layer, a bias or an epsilon."""
    for weight in network.parameters():
        nn.init.normal_(weight, 0, 0.3)
    return network


def share_called(ours, theirs, *inputs):
    """Copy the library's weights, layer by layer in the order of the calls."""
    pairs = zip(diffusion.called(ours, *inputs), diffusion.called(theirs, *inputs), strict=True)
    for layer, other in pairs:
        assert str(layer) == str(other)
        layer.load_state_dict(other.state_dict())


# ---- the schedule --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BETAS)
@pytest.mark.parametrize("T", [10, 1000])
def test_betas_and_all_that_follows_are_the_library_s(kind, T):
    extra = {} if T == 1000 else {"num_train_timesteps": T}
    theirs = DDPMScheduler(beta_schedule=IN_LIBRARY[kind], **extra)
    schedule = diffusion.Schedule(getattr(diffusion, BETAS[kind])(T))
    assert schedule.T == T
    assert schedule.betas.dtype == torch.float32
    networks.close(schedule.betas, theirs.betas)
    networks.close(schedule.alphas, theirs.alphas)
    torch.testing.assert_close(schedule.alpha_bar, theirs.alphas_cumprod, rtol=1e-4, atol=0)
    variances = torch.stack([theirs._get_variance(t) for t in range(T)])
    networks.close(schedule.posterior_variance, variances)


def test_two_steps_by_hand():
    schedule = diffusion.Schedule(torch.tensor([0.1, 0.2], dtype=torch.float64))
    networks.close(schedule.alpha_bar, torch.tensor([0.9, 0.72], dtype=torch.float64))
    # equations 7: beta (1 - before) / (1 - after), and the two weights of its mean
    networks.close(
        schedule.posterior_variance, torch.tensor([0, 0.2 * 0.1 / 0.28], dtype=torch.float64)
    )
    networks.close(schedule.from_x0, torch.tensor([1, 0.2 * 0.9**0.5 / 0.28], dtype=torch.float64))
    networks.close(schedule.from_xt, torch.tensor([0, 0.8**0.5 * 0.1 / 0.28]).double())


@pytest.mark.parametrize("kind", BETAS)
def test_single_steps_lead_to_the_closed_form(kind):
    betas = getattr(diffusion, BETAS[kind])(200).double()
    schedule = diffusion.Schedule(betas)
    weights, variances = diffusion.along_the_chain(betas)
    networks.close(weights, schedule.alpha_bar.sqrt(), 1e-10)
    networks.close(variances, 1 - schedule.alpha_bar, 1e-10)


def test_a_picture_is_mixed_with_noise_picture_by_picture():
    x0 = torch.full((2, 3, 4, 5), 2.0)
    noise = torch.full((2, 3, 4, 5), 10.0)
    mixed = diffusion.diffuse(x0, noise, torch.tensor([1.0, 0.36]))
    networks.close(mixed[0], x0[0])
    networks.close(mixed[1], torch.full((3, 4, 5), 0.6 * 2 + 0.8 * 10))


# ---- the network ---------------------------------------------------------------------------------


def test_the_published_network_has_the_layers_and_the_parameters_of_the_library_s():
    ours, theirs = on_meta(diffusion.UNet), on_meta(UNet2DModel, **PUBLISHED)
    assert parameters_of(ours) == parameters_of(theirs) == 35_746_307
    inputs = torch.empty(1, 3, 32, 32, device="meta"), torch.empty(1, device="meta")
    pairs = zip(diffusion.called(ours, *inputs), diffusion.called(theirs, *inputs), strict=True)
    assert all(str(layer) == str(other) for layer, other in pairs)
    same = on_meta(diffusion.library_unet, diffusion.CIFAR)
    described = zip(theirs.modules(), same.modules(), strict=True)
    assert all(type(a) is type(b) and a.extra_repr() == b.extra_repr() for a, b in described)


def test_the_published_network_costs_what_the_library_s_costs():
    class Theirs(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x):
            return self.network(x, 0).sample

    ours = diffusion.AtOneStep(on_meta(diffusion.UNet))
    theirs = Theirs(on_meta(UNet2DModel, **PUBLISHED))
    macs = [networks.macs_of(network, 1, 3, 32, 32) for network in (ours, theirs)]
    assert macs[0] == macs[1]
    small = diffusion.UNet(small_size())
    x = torch.randn(2, 2, 8, 8)
    networks.close(diffusion.AtOneStep(small)(x), small(x, torch.tensor([0, 0])), 0)


@pytest.mark.parametrize("classes", [None, 11])
@pytest.mark.parametrize(
    "how", [{}, {"blocks": 1}, {"attention": (True, False, True), "widths": (16, 8, 24)}]
)
def test_with_the_same_weights_the_network_does_what_the_library_s_does(classes, how):
    torch.manual_seed(0)
    size = small_size(**how)
    kind = diffusion.UNet if classes is None else diffusion.LabelledUNet
    ours, theirs = kind(size), random_weights(diffusion.library_unet(size, classes))
    labels = None if classes is None else torch.tensor([0, 4, 10])
    inputs = torch.randn(3, 2, 16, 12), torch.tensor([0, 17, 999]), labels
    share_called(ours, theirs, *inputs)
    networks.close(ours(*inputs), theirs(*inputs).sample, 1e-4)
    for network in (ours, theirs):
        found = network(*inputs)
        (found if network is ours else found.sample).square().sum().backward()
    pairs = zip(diffusion.called(ours, *inputs), diffusion.called(theirs, *inputs), strict=True)
    for layer, other in pairs:
        networks.close(layer.weight.grad, other.weight.grad, 1e-3)


def test_both_networks_run_forward_and_backward_on_the_meta_device():
    class AtStep(nn.Module):
        def __init__(self, network, *more):
            super().__init__()
            self.network, self.more = network, more

        def forward(self, x):
            t = torch.zeros(len(x), dtype=torch.long, device=x.device)
            return self.network(x, t, *(t for _ in self.more))

    ours = AtStep(on_meta(diffusion.UNet))
    assert networks.runs_on_meta(ours, 3, 3, 32, 16).shape == (3, 3, 32, 16)
    labelled = AtStep(on_meta(diffusion.LabelledUNet), "y")
    assert networks.runs_on_meta(labelled, 5, 4, 8, 12).shape == (5, 4, 8, 12)


def test_steps_are_told_apart_and_so_are_labels():
    torch.manual_seed(0)
    network = random_weights(diffusion.LabelledUNet())
    x = torch.randn(1, 4, 8, 8)
    one = network(x, torch.tensor([5]), torch.tensor([3]))
    assert not torch.allclose(one, network(x, torch.tensor([6]), torch.tensor([3])))
    assert not torch.allclose(one, network(x, torch.tensor([5]), torch.tensor([4])))
    found = diffusion.sinusoids(torch.tensor([0, 2]), 6)
    networks.close(found[0], torch.tensor([0.0, 0, 0, 1, 1, 1]))
    angles = torch.tensor([2.0, 2 / 100, 2 / 10_000])
    networks.close(found[1], torch.cat((angles.sin(), angles.cos())))


@pytest.mark.parametrize("d", [2, 5])
def test_sinusoids_refuse_a_width_that_they_cannot_fill(d):
    with pytest.raises(AssertionError, match="d must be even and at least 4"):
        diffusion.sinusoids(torch.tensor([0]), d)
    assert diffusion.sinusoids(torch.tensor([3]), 4).shape == (1, 4)


def test_levels_are_counted_whole():
    network = on_meta(diffusion.UNet)
    rows = diffusion.level_rows(network, diffusion.CIFAR, 32)
    assert [row[0] for row in rows] == ["32×32", "16×16", "8×8", "4×4"]
    assert [row[1] for row in rows] == [128, 256, 256, 256]
    counted = sum(row[2] for row in rows), sum(row[3] for row in rows)
    assert counted == (parameters_of(network.down), parameters_of(network.up))
    # the two blocks of the last level, by hand: two convolutions, two norms, the linear layer
    block = 2 * (9 * 256 * 256 + 256) + 4 * 256 + 512 * 256 + 256
    assert rows[3][2] == 2 * block


def test_a_silent_network_begins_with_no_branch_and_no_answer():
    torch.manual_seed(0)
    network = diffusion.silent(diffusion.LabelledUNet())
    x, t, y = torch.randn(2, 4, 8, 8), torch.tensor([1, 9]), torch.tensor([0, 10])
    networks.close(network(x, t, y), network.conv_out.bias[:, None, None].expand_as(x), 1e-6)
    block, attention = network.middle1.residual, network.middle1.attention
    h, e = torch.randn(2, 48, 4, 4), torch.randn(2, 96)
    networks.close(block(h, e), h + block.conv2.bias[:, None, None], 1e-6)
    networks.close(attention(h), h + attention.to_out.bias[:, None, None], 1e-6)


def test_one_batch_of_noise_is_learnt():
    torch.manual_seed(0)
    network = diffusion.LabelledUNet()
    schedule = diffusion.Schedule(diffusion.cosine_betas(50))
    x0, noise = torch.randn(2, 4, 4, 4).tanh(), torch.randn(2, 4, 4, 4)
    t, y = torch.tensor([10, 40]), torch.tensor([1, 2])
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    losses = []
    for _ in range(40):
        loss = diffusion.noise_loss(network, x0, y, t, noise, schedule)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10


# ---- loss and steps ------------------------------------------------------------------------------


def test_the_loss_is_nothing_for_the_noise_itself_and_one_for_silence():
    schedule = diffusion.Schedule(diffusion.linear_betas(100))
    x0, noise = torch.randn(50, 1, 8, 8), torch.randn(50, 1, 8, 8)
    t = torch.randint(100, (50,))
    alpha_bar = schedule.alpha_bar[t][:, None, None, None]

    def perfect(x, steps, y):
        assert steps is t and y == "labels"
        return (x - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()

    loss = diffusion.noise_loss(perfect, x0, "labels", t, noise, schedule)
    assert loss < 1e-6
    loss = diffusion.noise_loss(lambda x, t, y: 0 * x, x0, None, t, noise, schedule)
    networks.close(loss, noise.square().mean())


def test_the_clear_picture_is_what_was_mixed():
    x0, noise = torch.randn(2, 1, 3, 3), torch.randn(2, 1, 3, 3)
    bar = torch.tensor(0.3)
    mixed = diffusion.diffuse(x0, noise, bar.expand(2))
    networks.close(diffusion.clear_picture(mixed, noise, bar), x0)


@pytest.mark.parametrize("t", [0, 1, 300, 999])
def test_a_step_of_ddpm_is_the_library_s_and_the_posterior(t):
    torch.manual_seed(0)
    x, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    schedule = diffusion.Schedule(diffusion.linear_betas(1000))
    torch.manual_seed(1)
    theirs = DDPMScheduler(clip_sample=False).step(noise, t, x).prev_sample
    torch.manual_seed(1)
    fresh = torch.randn(x.shape)
    networks.close(diffusion.ddpm_step(x, noise, t, schedule, fresh), theirs, 1e-4)
    x0 = diffusion.clear_picture(x, noise, schedule.alpha_bar[t])
    mean = schedule.from_x0[t] * x0 + schedule.from_xt[t] * x
    networks.close(diffusion.ddpm_step(x, noise, t, schedule, 0 * x), mean, 1e-3)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("t", [20, 600, 980])
def test_a_step_of_ddim_is_the_library_s(eta, t):
    torch.manual_seed(0)
    x, noise, fresh = (torch.randn(2, 3, 4, 4) for _ in range(3))
    theirs = DDIMScheduler(clip_sample=False)
    theirs.set_timesteps(50)
    expected = theirs.step(noise, t, x, eta=eta, variance_noise=fresh).prev_sample
    bars = diffusion.Schedule(diffusion.linear_betas(1000)).alpha_bar
    found = diffusion.ddim_step(x, noise, bars[t], bars[t - 20], fresh, eta)
    networks.close(found, expected, 1e-4)


def test_ddim_draws_nothing_by_default_and_with_eta_one_is_ddpm():
    torch.manual_seed(0)
    x, noise, fresh = (torch.randn(2, 1, 4, 4).double() for _ in range(3))
    schedule = diffusion.Schedule(diffusion.cosine_betas(100).double())
    now, then = schedule.alpha_bar[50], schedule.alpha_bar[49]
    still = diffusion.ddim_step(x, noise, now, then, fresh)
    networks.close(still, diffusion.ddim_step(x, noise, now, then, -fresh), 0)
    chance = diffusion.ddim_step(x, noise, now, then, fresh, eta=1.0)
    networks.close(chance, diffusion.ddpm_step(x, noise, 50, schedule, fresh), 1e-9)


def test_the_clear_picture_is_held_between_minus_one_and_one():
    bar = torch.tensor(0.25)
    x0 = torch.tensor([-3.0, -0.5, 0.5, 3.0]).view(1, 1, 2, 2)
    noise = torch.randn(1, 1, 2, 2)
    x = diffusion.diffuse(x0, noise, bar[None])
    found = diffusion.held(x, noise, bar)
    clear = diffusion.clear_picture(x, found, bar)
    networks.close(clear, torch.tensor([-1, -0.5, 0.5, 1]).view(1, 1, 2, 2), 1e-5)
    networks.close(found.flatten()[1:3], noise.flatten()[1:3], 1e-5)


# ---- sampling ------------------------------------------------------------------------------------


def one_picture(schedule, picture):
    """The noise that a network finds which knows nothing but one picture."""

    def noise_in(x, t):
        assert t.shape == (len(x),)
        bar = schedule.alpha_bar[t][:, None, None, None]
        return (x - bar.sqrt() * picture) / (1 - bar).sqrt()

    return noise_in


@pytest.mark.parametrize(("steps", "eta"), [(1, 0.0), (5, 0.0), (5, 1.0), (50, 0.5)])
def test_a_network_that_knows_one_picture_makes_that_picture(steps, eta):
    torch.manual_seed(0)
    schedule = diffusion.Schedule(diffusion.linear_betas(50, last=0.2))
    picture = torch.rand(1, 1, 4, 4)
    x = torch.randn(3, 1, 4, 4)
    made = diffusion.sample(one_picture(schedule, picture), x, schedule, steps, eta)
    networks.close(made, picture.expand_as(made), 1e-4)


def test_steps_go_from_the_last_to_the_first_evenly():
    schedule = diffusion.Schedule(diffusion.linear_betas(101))
    seen = []

    def note(x, t):
        seen.append(t[0].item())
        return torch.zeros_like(x)

    x = torch.randn(1, 1, 2, 2)
    diffusion.sample(note, x, schedule, 5)
    diffusion.invert(note, x, schedule, 5)
    diffusion.on_the_way(note, x, schedule, 5)
    way = [100, 75, 50, 25, 0]
    assert seen == way + way[::-1] + way


def test_only_eta_makes_two_runs_differ():
    torch.manual_seed(0)
    schedule = diffusion.Schedule(diffusion.linear_betas(20, last=0.2))
    x = torch.randn(2, 1, 4, 4)

    def noise_in(x, t):
        return 0.5 * x

    runs = {eta: [diffusion.sample(noise_in, x, schedule, 10, eta) for _ in "ab"] for eta in (0, 1)}
    networks.close(*runs[0], 0)
    assert (runs[1][0] - runs[1][1]).abs().mean() > 0.01


def test_inversion_leads_to_the_noise_that_gives_the_picture():
    schedule = diffusion.Schedule(diffusion.linear_betas(100, last=0.1).double())
    x = torch.rand(2, 1, 4, 4, dtype=torch.float64) / 2

    def noise_in(x, t):
        return 0.3 * x

    errors = []
    for steps in (10, 100):
        noise = diffusion.invert(noise_in, x, schedule, steps)
        back = diffusion.sample(noise_in, noise, schedule, steps)
        errors.append((back - x).abs().max().item())
    assert errors[1] < errors[0] / 3
    assert errors[1] < 0.02


def test_the_cleared_picture_is_held_on_the_way_and_backwards():
    torch.manual_seed(0)
    schedule = diffusion.Schedule(diffusion.linear_betas(50, last=0.2))
    x = torch.randn(2, 1, 4, 4)
    off = torch.full_like(x, -5.0)
    pairs = diffusion.on_the_way(lambda x, t: off, x, schedule, 5)
    assert max(clear.abs().max().item() for _, clear in pairs) < 1 + 1e-4
    first, last = schedule.alpha_bar[0], schedule.alpha_bar[-1]
    near = diffusion.diffuse(x, off, first.expand(2))
    noise = diffusion.held(near, off, first)
    clear = diffusion.clear_picture(near, noise, first)
    expected = diffusion.diffuse(clear, noise, last.expand(2))
    found = diffusion.invert(lambda x, t: off, x, schedule, 2)
    networks.close(found, expected, 1e-4)
    assert not torch.allclose(found, diffusion.diffuse(clear, off, last.expand(2)), atol=0.1)


def test_samplers_stay_on_the_device_of_their_input():
    schedule = diffusion.Schedule(diffusion.linear_betas(10).to("meta"))
    x = torch.empty(2, 1, 4, 4, device="meta")

    def noise_in(x, t):
        assert t.device == x.device
        return x

    made = [
        diffusion.sample(noise_in, x, schedule, 5, eta=1.0),
        diffusion.invert(noise_in, x, schedule, 5),
        diffusion.on_the_way(noise_in, x, schedule, 5)[-1][1],
        diffusion.fill_in(noise_in, x, x, x, schedule),
    ]
    assert all(pictures.device.type == "meta" for pictures in made)


def test_the_way_ends_in_the_sample():
    schedule = diffusion.Schedule(diffusion.linear_betas(50, last=0.2))
    picture, x = torch.rand(1, 1, 4, 4), torch.randn(1, 1, 4, 4)
    noise_in = one_picture(schedule, picture)
    pairs = diffusion.on_the_way(noise_in, x, schedule, 5)
    assert len(pairs) == 5
    networks.close(pairs[0][0], x, 0)
    for _, clear in pairs:
        networks.close(clear, picture, 1e-4)
    bar = schedule.alpha_bar[0]
    expected = diffusion.diffuse(picture, noise_in(pairs[-1][0], torch.tensor([0])), bar[None])
    networks.close(pairs[-1][0], expected, 1e-4)


def test_guidance_goes_from_no_label_through_the_label_and_beyond():
    torch.manual_seed(0)
    network = random_weights(diffusion.LabelledUNet())
    x, t, y = torch.randn(3, 4, 8, 8), torch.tensor([0, 5, 150]), torch.tensor([1, 2, 3])
    nothing = torch.full((3,), diffusion.NO_LABEL)
    without, with_label = network(x, t, nothing), network(x, t, y)
    networks.close(diffusion.told(network, y)(x, t), with_label)
    for scale in (0.0, 1.0, 3.0):
        expected = (1 - scale) * without + scale * with_label
        networks.close(diffusion.guided(network, y, scale)(x, t), expected, 1e-4)


def test_noise_to_start_from_is_that_of_its_seed():
    x, y = diffusion.start(3, 12)
    networks.close(x, diffusion.start(3, 12)[0], 0)
    assert x.shape == (12, 4, 8, 8)
    assert y.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert not torch.allclose(x, diffusion.start(4, 12)[0])


def test_folding_keeps_all_pixels_and_their_places():
    pictures = torch.rand(2, 1, 6, 8)
    x = diffusion.folded(pictures)
    assert x.shape == (2, 4, 3, 4)
    networks.close(x[:, 1], 2 * pictures[:, 0, ::2, 1::2] - 1)
    networks.close(diffusion.unfolded(x), pictures)
    networks.close(diffusion.unfolded(3 * torch.ones(1, 4, 1, 1)), torch.ones(1, 1, 2, 2))


# ---- training ------------------------------------------------------------------------------------


def test_the_average_follows_the_network_fast_at_first():
    network = nn.Linear(1, 1, bias=False)
    average = copy.deepcopy(network)
    nn.init.zeros_(average.weight)
    nn.init.ones_(network.weight)
    diffusion.follow(average, network, 0, decay=0.9)
    assert average.weight.item() == pytest.approx(0.9)  # 1 - 1 / 10
    diffusion.follow(average, network, 10_000, decay=0.9)
    assert average.weight.item() == pytest.approx(0.91)
    assert network.weight.item() == 1


def test_training_hides_a_tenth_of_the_labels_and_draws_all_steps():
    torch.manual_seed(0)
    seen = []

    class Noting(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, x, t, y):
            seen.append((t, y))
            return self.weight * x

    x0, y = torch.zeros(10, 1, 2, 2), torch.arange(10) % 5
    schedule = diffusion.Schedule(diffusion.linear_betas(20, last=0.5))
    network = Noting()
    average, losses = diffusion.train(network, x0, y, schedule, steps=100, batch=32)
    assert len(losses) == 100
    assert sum(losses[-10:]) < sum(losses[:10])
    assert 0 < average.weight.item() < network.weight.item()
    steps = torch.cat([t for t, _ in seen])
    labels = torch.cat([y for _, y in seen])
    assert sorted(steps.unique().tolist()) == list(range(20))
    assert steps.shape == (3200,)
    hidden = (labels == diffusion.NO_LABEL).double().mean().item()
    assert hidden == pytest.approx(0.1, abs=0.02)
    assert set(labels.tolist()) == {0, 1, 2, 3, 4, diffusion.NO_LABEL}


# ---- measures ------------------------------------------------------------------------------------


def test_the_frechet_distance_of_known_clouds():
    torch.manual_seed(0)
    a = torch.randn(4000, 3)
    assert diffusion.frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    moved = a + torch.tensor([1.0, 2.0, 2.0])
    assert diffusion.frechet_distance(a, moved) == pytest.approx(9, rel=1e-4)
    # variances v and 4 v: v + 4 v - 2 * 2 v = v for each of three numbers
    expected = a.T.double().cov().trace().item()
    assert diffusion.frechet_distance(a, 2 * (a - a.mean(0)) + a.mean(0)) == pytest.approx(
        expected, rel=1e-4
    )


def test_the_distance_within_a_digit_looks_at_pairs_of_one_digit():
    features = torch.tensor([[0.0, 0], [3, 4], [100, 0], [100, 1], [100, 2], [9, 9]])
    y = torch.tensor([1, 1, 7, 7, 7, 8])  # the 8 has no second one and does not count
    assert diffusion.within(features, y) == pytest.approx((5 + 4 / 3) / 2)
    assert diffusion.within(features[-1:], y[-1:]) == 0


def test_the_outermost_pixels_are_those_of_the_four_sides():
    pictures = torch.zeros(2, 1, 4, 5)  # 14 of 20 pixels touch a side
    pictures[:, :, 1:-1, 1:-1] = 1
    assert diffusion.outermost(pictures) == 0
    for place in ((0, 2), (3, 2), (1, 0), (1, 4)):
        marked = pictures.clone()
        marked[0, 0, place[0], place[1]] = 1
        assert diffusion.outermost(marked) == pytest.approx(1 / 28)


def test_draws_are_balanced_and_share_no_picture():
    y = torch.tensor([1, 0, 1, 0, 0, 1, 1, 0, 1, 0])
    x = torch.arange(10.0).view(10, 1, 1, 1)
    drawn = [diffusion.balanced((x, y), number, 2) for number in (0, 1)]
    assert [labels.tolist() for _, labels in drawn] == [[0, 0, 1, 1]] * 2
    assert drawn[0][0].flatten().tolist() == [1, 3, 0, 2]
    assert drawn[1][0].flatten().tolist() == [4, 7, 5, 6]


def test_the_judge_reads_sixteen_features_and_answers_for_ten_digits():
    torch.manual_seed(0)
    judge = diffusion.Judge().eval()
    x = torch.rand(3, 1, 16, 16)
    assert judge.features(x).shape == (3, 16)
    networks.close(judge(x), judge.classifier(judge.features(x).relu()))
    convolutions = (25 * 16 + 16) + 2 * 16 + (9 * 16 * 32 + 32) + 2 * 32
    assert parameters_of(judge) == convolutions + (512 * 16 + 16) + (16 * 10 + 10)
    assert networks.runs_on_meta(on_meta(diffusion.Judge), 5, 1, 16, 16).shape == (5, 10)
    networks.learns(judge, torch.rand(10, 1, 16, 16), rate=0.01, steps=40)


def test_what_is_judged_are_pictures_between_zero_and_one():
    torch.manual_seed(0)
    judge = diffusion.Judge()
    for _ in range(3):
        judge(torch.rand(20, 1, 16, 16))
    judge.eval()
    x = 2 * torch.rand(40, 4, 8, 8) - 1
    pictures = diffusion.unfolded(x)
    answers = judge(pictures).argmax(1)
    features = judge.features(pictures).detach()
    real = torch.randn(50, 16)
    right, distance, spread = diffusion.judged(judge, x, answers, real)
    assert right == 1
    assert distance == pytest.approx(diffusion.frechet_distance(features, real), rel=1e-4)
    assert spread == pytest.approx(diffusion.within(features, answers), rel=1e-4)
    y = answers.clone()
    y[:30:2] = (y[:30:2] + 1) % 10
    right, distance, spread = diffusion.judged(judge, x, y, real)
    assert right == pytest.approx(25 / 40)
    assert distance == pytest.approx(diffusion.frechet_distance(features, real), rel=1e-4)
    same = answers == y
    assert spread == pytest.approx(diffusion.within(features[same], y[same]), rel=1e-4)


# ---- solutions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bar", [0.9, 0.2])
def test_the_loss_of_the_picture_is_that_of_the_noise_times_a_factor(bar):
    x0, noise = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    found = noise + 0.5
    loss = diffusion.clear_loss(x0, found, noise, torch.full((2,), bar)).item()
    assert loss == pytest.approx(0.25 * (1 - bar) / bar, rel=1e-3)


def test_the_arc_keeps_its_length_and_ends_where_it_should():
    a, b = torch.tensor([[1.0, 0]]), torch.tensor([[0.0, 1]])
    networks.close(diffusion.between(a, b, 0), a)
    networks.close(diffusion.between(a, b, 1), b)
    networks.close(diffusion.between(a, b, 0.5), torch.full((1, 2), math.sqrt(0.5)))


def test_filling_in_keeps_what_is_known_and_makes_the_rest():
    torch.manual_seed(0)
    schedule = diffusion.Schedule(diffusion.linear_betas(50, last=0.2))
    picture = torch.rand(1, 1, 4, 4)
    known = -torch.ones(2, 1, 4, 4)
    mask = torch.zeros(2, 1, 4, 4)
    mask[..., :2] = 1
    noise_in = one_picture(schedule, picture)
    seen = []

    def noting(x, t):
        seen.append((t[0].item(), x))
        return noise_in(x, t)

    made = diffusion.fill_in(noting, known, mask, torch.randn(2, 1, 4, 4), schedule)
    networks.close(made[..., :2], known[..., :2], 0)
    networks.close(made[..., 2:], picture.expand_as(made)[..., 2:], 1e-4)
    assert [t for t, _ in seen] == list(range(49, -1, -1))
    last = seen[-1][1]  # nearly clear: the known half has been put in, with little noise
    assert (last[..., :2] + 1).abs().mean() < 0.05
