"""The networks of notebooks/stable_diffusion.py: Stable Diffusion and its miniature."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import networks
from loader import definitions
from networks import macs_of, on_meta, parameters_of

sd = definitions("stable_diffusion")


def UNET():
    return sd.UNetSize(widths=(16, 32, 32, 32), d_text=24, n_heads=4, groups=8)


def SHALLOW(d_text=24):
    return sd.UNetSize(
        widths=(16, 24), reads=(False, True), depth=1, d_text=d_text, n_heads=2, groups=8
    )


def DEEP_VAE():
    return sd.VAESize(widths=(16, 32), groups=8)


def GREY_VAE():
    return sd.VAESize(c_image=1, c_latent=3, widths=(8, 16, 16), depth=1, groups=4)


def TEXT():
    return sd.TextSize(V=50, T=10, d_model=32, n_heads=4, depth=2)


def filled(network):
    """The same network with every vector of weights moved off zeros and ones."""
    torch.manual_seed(7)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim == 1:
                weight += torch.randn_like(weight) / 5
    return network.eval()


# ---- count ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "build", "expected"),
    [
        ("UNet", "reference_unet", 859_520_964),
        ("VAE", "reference_vae", 83_653_863),
        ("TextEncoder", "reference_text", 123_060_480),
    ],
)
def test_the_published_sizes_have_the_parameters_of_the_libraries(name, build, expected):
    size = {"UNet": sd.UNetSize, "VAE": sd.VAESize, "TextEncoder": sd.TextSize}[name]()
    assert parameters_of(on_meta(getattr(sd, name))) == expected
    assert parameters_of(on_meta(getattr(sd, build), size)) == expected


def test_macs_of_a_block_are_those_of_its_convolutions():
    block = on_meta(sd.ResidualBlock, 8, 16, groups=4)
    assert macs_of(block, 1, 8, 5, 6) == 30 * (9 * 8 * 16 + 9 * 16 * 16 + 8 * 16)


def test_a_use_of_a_model_is_counted_as_the_model_itself():
    vae = on_meta(sd.VAE, GREY_VAE())
    z = torch.empty(1, 3, 4, 4, device="meta")
    counted = macs_of(sd.Calling(vae, sd.VAE.decode), 1, 3, 4, 4)
    assert counted == macs_of(vae.decoder, 1, 3, 4, 4) + 16 * 9
    assert vae.decode(z).shape == (1, 1, 16, 16)


def test_the_largest_output_is_that_of_the_widest_layer():
    model = nn.Sequential(nn.Linear(3, 7), nn.ReLU(), nn.Linear(7, 2))
    x = torch.empty(5, 3)
    assert sd.largest_output(model, x) == 35
    assert not any(layer._forward_hooks for layer in model)


# ---- reference -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [UNET, SHALLOW])
@torch.no_grad()
def test_with_the_same_weights_the_unet_predicts_what_that_of_diffusers_does(size):
    size = size()
    torch.manual_seed(0)
    theirs, ours = filled(sd.reference_unet(size)), sd.UNet(size)
    inputs = torch.randn(2, 4, 8, 16), torch.tensor([3, 700]), torch.randn(2, 7, 24)
    sd.copy_weights(theirs, ours, *inputs)
    networks.close(ours(*inputs), theirs(*inputs).sample)


@pytest.mark.parametrize("size", [DEEP_VAE, GREY_VAE])
@torch.no_grad()
def test_with_the_same_weights_the_vae_codes_and_decodes_as_that_of_diffusers(size):
    size = size()
    torch.manual_seed(0)
    theirs, ours = filled(sd.reference_vae(size)), sd.VAE(size)
    x = torch.randn(2, size.c_image, 16, 24)
    sd.copy_weights(theirs, ours, x)
    mean, log_variance = ours.encode(x)
    expected = theirs.encode(x).latent_dist
    networks.close(mean, expected.mean)
    networks.close(log_variance, expected.logvar)
    networks.close(ours.decode(mean), theirs.decode(mean).sample)


def test_log_variances_are_kept_between_minus_30_and_20():
    torch.manual_seed(0)
    vae = sd.VAE(GREY_VAE())
    with torch.no_grad():
        vae.to_moments.weight.mul_(1e4)
        _, log_variance = vae.encode(torch.randn(2, 1, 16, 16))
    assert (log_variance.min(), log_variance.max()) == (-30, 20)


@torch.no_grad()
def test_with_the_same_weights_the_text_encoder_gives_what_clip_does():
    torch.manual_seed(0)
    theirs, ours = filled(sd.reference_text(TEXT())), sd.TextEncoder(TEXT())
    numbers = torch.randint(50, (2, 9))
    sd.copy_weights(theirs, ours, numbers)
    networks.close(ours(numbers), theirs(numbers).last_hidden_state)


def test_the_shares_of_signal_are_those_of_diffusers():
    networks.close(sd.signal_shares(), sd.reference_scheduler(20).alphas_cumprod)


@pytest.mark.parametrize(("steps", "scale", "skipped"), [(10, 1.0, 0), (20, 3.0, 0), (20, 3.0, 7)])
@torch.no_grad()
def test_sampling_goes_through_the_steps_of_diffusers_with_guidance(steps, scale, skipped):
    torch.manual_seed(0)

    def unet(z, t, text):  # a network whose answer depends on all three
        return (
            0.5 * z
            + torch.sin(t / 100)[:, None, None, None]
            + text.mean((1, 2))[:, None, None, None]
        )

    start, text, empty = torch.randn(2, 4, 4, 8), torch.randn(2, 6, 8), torch.randn(1, 6, 8)
    theirs, z = sd.reference_scheduler(steps), start
    for number in theirs.timesteps[skipped:]:
        t = number.repeat(2)
        without = unet(z, t, empty.expand(2, -1, -1))
        noise = without + scale * (unet(z, t, text) - without)
        z = theirs.step(noise, number, z).prev_sample
    how = {"scale": scale, "steps": steps, "skipped": skipped}
    networks.close(sd.sample(unet, text, empty, start, **how), z)


def test_the_layers_of_a_pass_are_found_in_the_order_of_their_calls():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.second, self.first, self.idle = nn.Linear(3, 2), nn.Linear(4, 3), nn.Linear(1, 1)

        def forward(self, x):
            return self.second(self.first(x))

    network = Backwards()
    x = torch.randn(2, 4)
    assert sd.called(network, x) == [network.first, network.second]
    assert sd.called(network, x) == [network.first, network.second]  # no hook is left


def test_shaking_moves_vectors_off_their_zeros_and_ones_and_no_matrix():
    torch.manual_seed(0)
    network = nn.Sequential(nn.GroupNorm(2, 400), nn.Conv2d(400, 4, 1))
    norm, conv = network
    before = conv.weight.clone()
    assert sd.shake(network) is network
    assert not network.training
    for found, start in ((norm.weight, 1), (norm.bias, 0)):
        assert found.mean().item() == pytest.approx(start, abs=0.02)
        assert found.std().item() == pytest.approx(0.1, abs=0.02)
    networks.close(conv.weight, before, 0)


# ---- shape ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("H", "W"), [(8, 16), (16, 8)])
def test_the_vae_shrinks_an_image_by_its_halvings(H, W):
    vae = sd.VAE(GREY_VAE())
    mean, log_variance = vae.encode(torch.randn(3, 1, H, W))
    assert mean.shape == log_variance.shape == (3, 3, H // 4, W // 4)
    seen, *_ = vae(torch.randn(3, 1, H, W))
    assert seen.shape == (3, 1, H, W)


def test_the_way_up_takes_over_all_that_the_way_down_has_handed():
    down, handed = sd.way_down(UNET())
    assert handed == [16, 16, 16, 16, 32, 32, 32, 32, 32, 32, 32, 32]
    assert len(down) == len(handed) - 1
    up = sd.way_up(UNET(), handed)
    assert handed == []
    assert [type(layer.resize) is sd.Double for layer in up] == ([False] * 2 + [True]) * 3 + [
        False
    ] * 3


@pytest.mark.parametrize("size", [UNET, SHALLOW])
def test_the_unet_runs_on_the_meta_device(size):
    size = size()
    network = on_meta(sd.UNet, size)

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.unet = network

        def forward(self, x):
            t = torch.zeros(len(x), device=x.device)
            return self.unet(x, t, torch.zeros(len(x), 5, 24, device=x.device))

    assert networks.runs_on_meta(Whole(), 2, 4, 16, 8).shape == (2, 4, 16, 8)


def test_the_vae_and_the_painter_run_on_the_meta_device():
    assert networks.runs_on_meta(on_meta(sd.VAE, DEEP_VAE()), 2, 3, 8, 8)[0].shape == (2, 3, 8, 8)
    painter = on_meta(sd.Painter, sd.MINI_TEXT, sd.MINI)
    numbers = torch.zeros(2, 6, dtype=torch.long, device="meta")
    z = torch.empty(2, 4, 4, 8, device="meta")
    noise = painter(z, torch.zeros(2, device="meta"), numbers)
    assert noise.shape == z.shape
    noise.sum().backward()
    assert all(weight.grad is not None for weight in painter.parameters())


def test_the_levels_of_the_published_unet_and_their_parameters():
    unet = on_meta(sd.UNet)
    rows = sd.levels(unet, torch.empty(1, 4, 64, 64, device="meta"))
    sizes = [(320, 64), (640, 32), (1280, 16), (1280, 8)]
    down = [("down", (c, size, size)) for c, size in sizes]
    up = [("up", (c, min(2 * size, 64), min(2 * size, 64))) for c, size in sizes[::-1]]
    assert [row[:2] for row in rows] == [*down, ("middle", (1280, 8, 8)), *up]
    outside = [unet.time, unet.norm, unet.conv_out]
    assert sum(row[2] for row in rows) == 859_520_964 - sum(map(parameters_of, outside))


# ---- limit ---------------------------------------------------------------------------------------


def test_a_text_token_reads_none_behind_it():
    torch.manual_seed(0)
    encoder = filled(sd.TextEncoder(TEXT()))
    numbers = torch.randint(50, (1, 9))
    other = numbers.clone()
    other[0, 5:] = (numbers[0, 5:] + 1) % 50
    networks.close(encoder(numbers)[:, :5], encoder(other)[:, :5])
    assert not torch.allclose(encoder(numbers)[:, 5:], encoder(other)[:, 5:])


def test_a_unet_that_reads_nowhere_is_the_same_with_any_text():
    torch.manual_seed(0)
    network = filled(sd.UNet(SHALLOW()))
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([5])
    one, two = torch.randn(1, 6, 24), torch.randn(1, 6, 24)
    assert not torch.allclose(network(x, t, one), network(x, t, two))
    for module in network.modules():
        if isinstance(module, sd.TransformerBlock):
            nn.init.zeros_(module.cross.to_v.weight)
    networks.close(network(x, t, one), network(x, t, two))


def test_the_gated_mlp_multiplies_its_two_halves():
    mlp = sd.GatedMLP(1)
    with torch.no_grad():
        mlp.wide.weight.zero_()
        mlp.wide.bias.copy_(torch.tensor([2.0, 3, 5, 7, 0, 1, -1, 2]))
        mlp.narrow.weight.fill_(1.0)
        mlp.narrow.bias.zero_()
    expected = (
        3 * F.gelu(torch.tensor(1.0))
        + 5 * F.gelu(torch.tensor(-1.0))
        + 7 * F.gelu(torch.tensor(2.0))
    )
    networks.close(mlp(torch.zeros(1, 1))[0, 0], expected)


def test_the_step_is_told_in_cosines_and_then_sines():
    found = sd.sinusoids(torch.tensor([0, 3]), 4)
    angles = torch.tensor([3.0, 0.03])
    networks.close(found[0], torch.tensor([1.0, 1, 0, 0]))
    networks.close(found[1], torch.cat((angles.cos(), angles.sin())))


def test_a_step_with_the_true_noise_lands_on_the_same_latents_with_less_of_it():
    torch.manual_seed(0)
    z, noise = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    much, little = torch.tensor(0.2), torch.tensor(0.9)
    noisy = sd.add_noise(z, noise, much)
    networks.close(sd.ddim_step(noisy, noise, much, little), sd.add_noise(z, noise, little))
    networks.close(sd.ddim_step(noisy, noise, much, torch.tensor(1.0)), z)


def test_guidance_by_hand():
    with_text, without = torch.tensor([3.0]), torch.tensor([1.0])
    for scale, expected in ((0, 1.0), (1, 3.0), (4, 9.0)):
        assert sd.guided(with_text, without, scale).item() == expected


def test_the_loss_of_the_vae_by_hand():
    mean, log_variance = torch.tensor([2.0]), torch.tensor([0.0])
    x = torch.tensor([1.0])
    assert sd.vae_loss(x + 3, x, mean, log_variance).item() == pytest.approx(9 + 1e-4 * 2)
    wide = torch.tensor([1.0])
    expected = 1e-4 * (torch.e - 2) / 2
    assert sd.vae_loss(x, x, 0 * mean, wide).item() == pytest.approx(expected, rel=1e-4)


def test_a_draw_has_the_mean_and_the_deviation_asked_for():
    torch.manual_seed(0)
    found = sd.draw(torch.full((20_000,), 5.0), torch.full((20_000,), 2 * torch.tensor(3.0).log()))
    assert found.mean().item() == pytest.approx(5, abs=0.1)
    assert found.std().item() == pytest.approx(3, abs=0.1)


def test_the_loss_of_the_unet_is_nothing_for_one_that_knows_the_latents():
    torch.manual_seed(0)
    shares, z = sd.signal_shares(), torch.randn(6, 4, 4, 8)

    def knows(noisy, t, numbers):
        share = shares[t][:, None, None, None]
        return (noisy - share.sqrt() * z) / (1 - share).sqrt()

    numbers = torch.zeros(6, 6, dtype=torch.long)
    assert sd.diffusion_loss(knows, z, numbers, shares).item() < 1e-6
    nothing = sd.diffusion_loss(lambda noisy, t, numbers: 0 * noisy, z, numbers, shares)
    assert nothing.item() == pytest.approx(1, abs=0.2)


def test_latents_and_pictures_are_scaled_to_and_from_minus_one_and_one():
    torch.manual_seed(0)
    vae, x = sd.VAE(GREY_VAE()), torch.rand(3, 1, 16, 16)
    means, log_variances = sd.encoded(vae, x)
    mean, log_variance = vae.encode(2 * x - 1)
    networks.close(means, mean)
    networks.close(log_variances, log_variance)
    expected = ((vae.decode(means) + 1) / 2).clamp(0, 1)
    networks.close(sd.decoded(vae, means), expected)


# ---- prompts and pictures ------------------------------------------------------------------------


def test_prompts_and_their_numbers():
    assert sd.prompt_of("plain", (2,)) == "two"
    assert sd.prompt_of("thick", (2,)) == "thick two"
    assert sd.prompt_of("plain", (3, 5)) == "three and five"
    assert sd.prompt_of("thin", (3, 5)) == "thin three and five"
    rows = sd.numbers_of(["", "thick two"])
    words = [[sd.WORDS[number] for number in row] for row in rows]
    assert words[0] == ["BEGIN", "END", "END", "END", "END", "END"]
    assert words[1] == ["BEGIN", "thick", "two", "END", "END", "END"]


def test_what_is_kept_back_is_never_drawn_and_all_else_is():
    draw = torch.Generator().manual_seed(0)
    found = {sd.draw_asked(draw) for _ in range(4000)}
    singles = {(style, (k,)) for style in sd.STYLES for k in range(10)}
    pairs = {("plain", (a, b)) for a in range(10) for b in range(10)}
    kept = {what for what in singles | pairs if sd.kept_back(*what)}
    assert found == (singles | pairs) - kept
    assert {what for what in kept if len(what[1]) == 1} == {(s, (k,)) for s, k in sd.KEPT_BACK}
    for place in (0, 1):  # each digit is kept back twice in each place
        held = [shown[place] for _, shown in kept if len(shown) == 2]
        assert sorted(held) == sorted(2 * list(range(10)))


def test_what_is_asked_as_seen_was_not_kept_back():
    assert not any(sd.kept_back(*what) for asked in sd.SEEN.values() for what in asked)
    for name in ("single digits kept back", "pairs kept back"):
        assert all(sd.kept_back(*what) for what in sd.NOT_SEEN[name])


def test_thick_is_the_brightest_and_thin_the_darkest_of_the_neighbours():
    dot = torch.zeros(1, 1, 28, 28)
    dot[..., 10:12, 10:12] = 1
    plain, thick, thin = (sd.restyled(dot, style).sum().item() for style in sd.STYLES)
    assert thick / plain == pytest.approx(4, rel=0.05)  # 4x4 for 2x2
    assert thin / plain == pytest.approx(1 / 4, rel=0.05)
    edge = sd.restyled(torch.ones(1, 1, 28, 28), "thin")
    assert edge[..., :14, :14].min() > 0.999  # only the last row and column have dark neighbours
    assert edge[..., -1, -1] < 0.9


def test_sheets_hold_the_digits_that_are_asked():
    styled = {
        style: torch.arange(20.0).view(20, 1, 1, 1).expand(-1, 1, 16, 16) + shift
        for style, shift in zip(sd.STYLES, (0, 100, 200), strict=True)
    }
    labels = torch.arange(20) % 10
    asked = [("plain", (2,)), ("thick", (7,)), ("thin", (0,)), ("plain", (3, 5)), ("thick", (5, 5))]
    pictures = sd.written(styled, labels, asked * 9, torch.Generator().manual_seed(0))
    assert pictures.shape == (45, 1, 16, 32)
    drawn = set()
    for picture, (style, shown) in zip(pictures, asked * 9, strict=True):
        edges = (8,) if len(shown) == 1 else (0, 16)
        assert sd.places_of(shown) == edges
        for k, left in zip(shown, edges, strict=True):
            (value,) = set(picture[0, :, left : left + 16].flatten().tolist())
            place = int(value) - 100 * sd.STYLES.index(style)
            assert place % 10 == k
            drawn.add(place)
        if len(shown) == 1:
            assert not picture[0, :, :8].any()
            assert not picture[0, :, 24:].any()
    assert drawn == {2, 12, 7, 17, 0, 10, 3, 13, 5, 15}  # all digits of a class are used


def test_values_are_averaged_by_seed_and_by_style():
    asked = [("plain", (1,)), ("thick", (2,)), ("thick", (3,))]
    values = {
        ("a", 4, 1): torch.tensor([True, False, True]),
        ("a", 4, 0): torch.tensor([False, False, True]),
        ("a", 1, 0): torch.tensor([True, True, True]),
        ("b", 4, 0): torch.tensor([True, True, True]),
    }
    assert sd.by_seed(values, asked, "a", 4) == pytest.approx([1 / 3, 2 / 3])
    assert sd.by_seed(values, asked, "a", 4, "thick") == [0.5, 0.5]
    assert sd.by_seed(values, asked, "a", 4, "plain") == [0, 1]


class Bright(nn.Module):
    """Reads the mean of a cut as the digit."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return -((x.mean((1, 2, 3))[:, None] - torch.arange(10.0)) ** 2) + self.weight


def test_a_sheet_is_right_when_all_its_digits_are_read_as_asked():
    one = F.pad(torch.full((1, 16, 16), 4.0), (8, 8))
    two = torch.cat((torch.full((1, 16, 16), 3.0), torch.full((1, 16, 16), 7.0)), -1)
    sheets = torch.stack((one, one, two, two, two))
    asked = [("plain", shown) for shown in ((4,), (5,), (3, 7), (7, 3), (3, 8))]
    assert sd.obeyed(Bright(), sheets, asked).tolist() == [True, False, True, False, False]
    networks.close(sd.ink(sheets, asked), torch.tensor([4.0, 4, 5, 5, 5]))


# ---- learn ---------------------------------------------------------------------------------------


def test_the_judge_fits_one_batch():
    torch.manual_seed(0)
    networks.learns(sd.Judge(), torch.rand(20, 1, 16, 16), rate=0.01, steps=60)


def test_a_step_of_training_lowers_the_loss_of_the_vae():
    torch.manual_seed(0)
    pictures = torch.zeros(32, 1, 16, 32)
    pictures[:, :, 4:12] = 1  # one picture
    losses = sd.train_vae(sd.VAE(GREY_VAE()), pictures, steps=40)
    assert losses[-1] < losses[0] / 10


class Squares(nn.Module):
    """An autoencoder that gives one number everywhere and keeps what it is shown."""

    def __init__(self):
        super().__init__()
        self.guess = nn.Parameter(torch.zeros(()))
        self.shown = []

    def forward(self, x):
        self.shown.append(x)
        return self.guess + 0 * x, torch.zeros(2), torch.zeros(2)


def test_the_vae_is_shown_squares_of_the_sheets_from_minus_one_to_one():
    torch.manual_seed(0)
    columns = torch.linspace(0, 1, 32).expand(9, 1, 16, 32)
    vae = Squares()
    losses = sd.train_vae(vae, columns, steps=300)
    lefts = set()
    for x in vae.shown:
        assert x.shape == (sd.CUTS, 1, 16, 16)
        left = round(31 * (x[0, 0, 0, 0].item() + 1) / 2)
        expected = 2 * columns[0, 0, 0, left : left + 16] - 1
        networks.close(x, expected.expand_as(x))
        lefts.add(left)
    assert lefts == set(range(17))
    assert losses[0] == pytest.approx((vae.shown[0] ** 2).mean().item())
    assert vae.guess.abs() > 0.01


def test_a_painter_fits_one_batch_of_noise():
    torch.manual_seed(0)
    painter = sd.Painter(sd.MINI_TEXT, SHALLOW(48))
    z, noise, t = torch.randn(4, 4, 4, 8), torch.randn(4, 4, 4, 8), torch.tensor([1, 300, 600, 900])
    numbers = sd.numbers_of(["two", "thick two", "three and five", ""])
    optimizer, losses = torch.optim.Adam(painter.parameters(), lr=1e-2), []
    for _ in range(40):
        loss = F.mse_loss(painter(z, t, numbers), noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10


def test_painter_learns_and_its_average_follows():
    torch.manual_seed(0)
    painter = sd.Painter(sd.MINI_TEXT, SHALLOW(48))
    latents = torch.zeros(8, 4, 4, 8), torch.full((8, 4, 4, 8), -30.0)
    numbers = sd.numbers_of(["two"] * 8)
    averaged, losses = sd.train(painter, latents, numbers, steps=30, unit=1.0)
    assert sum(losses[-5:]) < sum(losses[:5]) / 2
    before, after = sd.Judge(), sd.Judge()
    value = before.hidden.weight.detach().clone()
    sd.follow(before, after, 0.25)
    networks.close(before.hidden.weight, 0.75 * value + 0.25 * after.hidden.weight)
    assert parameters_of(averaged) == parameters_of(painter)


# ---- look ----------------------------------------------------------------------------------------


@torch.no_grad()
def test_reading_weights_are_those_that_the_attention_uses():
    torch.manual_seed(0)
    cross, x, text = sd.Attention(8, 6, n_heads=2), torch.randn(2, 5, 8), torch.randn(2, 3, 6)
    weights = sd.reading_weights(cross, x, text)
    networks.close(weights.sum(-1), torch.ones(2, 5))
    one_head = sd.Attention(8, 6, n_heads=1)
    read = sd.reading_weights(one_head, x, text) @ one_head.to_v(text)
    networks.close(one_head.to_out(read), one_head(x, text))


def test_where_each_place_reads_is_the_mean_over_the_transformers():
    torch.manual_seed(0)
    painter = sd.Painter(sd.MINI_TEXT, SHALLOW(48))
    numbers = sd.numbers_of(["two", "three and five"])
    z, t = torch.randn(2, 4, 4, 8), torch.tensor([10, 500])
    found = sd.where_read(painter, z, t, numbers)
    assert found.shape == (2, 8, 6)
    networks.close(found.sum(-1), torch.ones(2, 8))
    blocks = [m for m in painter.modules() if isinstance(m, sd.TransformerBlock)]
    assert not any(block.cross._forward_hooks for block in blocks)
    for block in blocks:
        nn.init.zeros_(block.cross.to_q.weight)  # all words alike
    networks.close(sd.where_read(painter, z, t, numbers), torch.full((2, 8, 6), 1 / 6))


# ---- solutions -----------------------------------------------------------------------------------


def test_a_picture_is_repainted_from_its_latents_with_the_noise_of_the_first_step_taken():
    torch.manual_seed(0)
    vae, painter = (
        sd.VAE(sd.VAESize(c_image=1, widths=(8, 16, 16), depth=1, groups=4)),
        sd.Painter(sd.MINI_TEXT, SHALLOW(48)),
    )
    pictures, seen = torch.rand(2, 1, 16, 32), {}
    nn.init.zeros_(painter.unet.conv_out.weight)  # predicts no noise
    nn.init.zeros_(painter.unet.conv_out.bias)
    painter.unet.register_forward_pre_hook(lambda _, args: seen.setdefault("first", args))
    torch.manual_seed(1)
    found = sd.repaint(painter, vae, pictures, ["two", "three"], skipped=16, unit=0.5)
    z, t, _ = seen["first"]
    assert t.tolist() == [151] * 4
    torch.manual_seed(1)
    mean = sd.encoded(vae, pictures)[0]
    share = sd.signal_shares()[151]
    first = share.sqrt() * 0.5 * mean + (1 - share).sqrt() * torch.randn(mean.shape)
    networks.close(z[:2], first)
    end = first * (sd.signal_shares()[0] / share).sqrt()
    networks.close(found, sd.decoded(vae, end / 0.5))


# ---- training and asking -------------------------------------------------------------------------


class Recorder(nn.Module):
    """Predicts one number everywhere and keeps what it is asked."""

    def __init__(self):
        super().__init__()
        self.guess, self.asked = nn.Parameter(torch.zeros(())), []

    def forward(self, z, t, numbers):
        self.asked.append((z.detach(), t, numbers))
        return self.guess + 0 * z

    def __deepcopy__(self, memo):
        return Recorder()


def test_the_prompt_of_one_sample_in_ten_is_emptied_and_latents_are_scaled():
    torch.manual_seed(0)
    recorder, latents = Recorder(), (torch.full((9, 4, 4, 8), 3.0), torch.full((9, 4, 4, 8), -30.0))
    numbers = sd.numbers_of(["thick two"] * 9)
    averaged, losses = sd.train(recorder, latents, numbers, steps=40, unit=2.0)
    z, t, asked = (torch.cat(parts) for parts in zip(*recorder.asked, strict=True))
    assert z.shape == (40 * sd.BATCH, 4, 4, 8)
    empty = (asked == sd.numbers_of([""])).all(1)
    assert empty.double().mean().item() == pytest.approx(0.1, abs=0.03)
    assert (asked[~empty] == numbers[0]).all()
    signal = sd.signal_shares()[t].sqrt()
    networks.close(
        z.mean((1, 2, 3)) / signal.clamp(min=0.5), 6 * signal / signal.clamp(min=0.5), 0.15
    )
    assert t.min() < 50
    assert t.max() > 950
    assert losses[0] == pytest.approx(1, abs=0.1)


def test_the_average_moves_a_hundredth_of_the_way_at_each_step():
    torch.manual_seed(0)
    recorder, latents = Recorder(), (torch.zeros(9, 4, 4, 8), torch.zeros(9, 4, 4, 8))
    averaged, _ = sd.train(recorder, latents, sd.numbers_of([""] * 9), steps=2, unit=1.0)
    guesses = averaged.guess.item(), recorder.guess.item()
    assert 0 < abs(guesses[0]) < 0.021 * abs(guesses[1])


@torch.no_grad()
def test_painting_decodes_what_sampling_made_of_the_noise_of_a_seed():
    torch.manual_seed(0)
    vae, painter = (
        sd.VAE(sd.VAESize(c_image=1, widths=(8, 16, 16), depth=1, groups=4)),
        sd.Painter(sd.MINI_TEXT, SHALLOW(48)),
    )
    asked = [("thick", (2,)), ("plain", (3, 5))]
    found = sd.paint(painter, vae, asked, number=5, scale=3.0, unit=0.5)
    torch.manual_seed(5)
    noise = torch.randn(2, 4, 4, 8)
    text, empty = (painter.text(sd.numbers_of(p)) for p in (["thick two", "three and five"], [""]))
    z = sd.sample(painter.unet, text, empty, noise, scale=3.0, steps=sd.SAMPLING_STEPS)
    networks.close(found, sd.decoded(vae, z / 0.5))
    numbers, t = sd.numbers_of(["two", "three and five"]), torch.tensor([4, 700])
    networks.close(painter(noise, t, numbers), painter.unet(noise, t, painter.text(numbers)))


def test_the_judge_is_two_convolutions_and_two_linear_layers():
    torch.manual_seed(0)
    judge = sd.Judge()
    pool = nn.MaxPool2d(2)
    same = nn.Sequential(
        judge.conv1,
        nn.ReLU(),
        pool,
        judge.conv2,
        nn.ReLU(),
        pool,
        nn.Flatten(),
        judge.hidden,
        nn.ReLU(),
        judge.classifier,
    )
    x = torch.randn(3, 1, 16, 16)
    networks.close(judge(x), same(x))
