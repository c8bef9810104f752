"""MPGNet, which makes of a clean photograph one as taken through a display, and its discriminator: "Modular Degradation Simulation
and Restoration for Under-Display Camera" (arXiv 2209.11455, ACCV 2022). Reference: SummerParadise-0922/MPGNet @c9a28747,
`models/MPGNet_P.py`, `MPGNet_T.py`, `DiscriminatorSN.py` and `utils/loss.py`, GPL-3.0; written from a description of what they
compute, not from their code.

Where the port differs on purpose:
- random tensors can be given, and are drawn from `generator` otherwise;
- one configuration holds the widths, which are fixed in the reference.
What the reference computes other than the paper means is kept: blocks of the blur module are one convolution without activation, and
the two bounds between which quantization noise is drawn differ by 1e-6 only.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput, can_return_tuple

from hf_ext.layers.initialization import init_conv_as_torch, init_linear
from hf_ext.layers.inputs import check_images

from .configuration_mpgnet import MPGNetConfig

EPSILON = 1e-6
PAIR_WEIGHT = 10.0  # of the distance between the simulated and the real image, in the generator's loss


@dataclass
class MPGNetOutput(ModelOutput):
    """
    Attributes:
        light_rate: (B, 3), what is left of the light of each color.
        blurred_pixel_values: (B, 3, H, W) in [0, 1], darkened and blurred.
        degraded_pixel_values: (B, 3, H, W), with noise; not clamped.
    """

    light_rate: torch.Tensor | None = None
    blurred_pixel_values: torch.Tensor | None = None
    degraded_pixel_values: torch.Tensor | None = None


@dataclass
class MPGNetDiscriminatorOutput(ModelOutput):
    """
    Attributes:
        logits: (B, 1, H, W), for each pixel how real `pixel_values` look.
        target_logits: the same for the real image; this and all that follows only with `target_pixel_values`.
        discriminator_loss: what the discriminator is trained with; pass it detached images.
        generator_adversarial_loss, pair_loss, generator_loss: what the generator is trained with: least squares, mean absolute
            error, and the first plus ten times the second.
    """

    logits: torch.Tensor | None = None
    target_logits: torch.Tensor | None = None
    discriminator_loss: torch.Tensor | None = None
    generator_adversarial_loss: torch.Tensor | None = None
    pair_loss: torch.Tensor | None = None
    generator_loss: torch.Tensor | None = None


def discriminator_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """Least squares: real images to one, simulated ones to zero."""
    return ((real_logits - 1).square().mean() + fake_logits.square().mean()) / 2


def adversarial_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """Least squares: simulated images to one."""
    return (fake_logits - 1).square().mean() / 2


def generator_loss(adversarial: torch.Tensor, pair: torch.Tensor, pair_weight: float = PAIR_WEIGHT) -> torch.Tensor:
    return adversarial + pair_weight * pair


def reflecting_conv(in_width: int, width: int, kernel_size: int = 3, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(in_width, width, kernel_size, padding=kernel_size // 2, padding_mode="reflect", bias=bias)


class MPGNetLightRate(nn.Module):
    """How much light the display lets through. (B, 3, H, W) -> (B, 3)"""

    def __init__(self, config: MPGNetConfig):
        super().__init__()
        width = config.light_rate_hidden_size
        widths, strides = (3, width, width, 2 * width, 2 * width, width), (4, 2, 2, 2, 2)
        self.convs = nn.Sequential(
            *(nn.Conv2d(*pair, 3, stride, padding=1) for *pair, stride in zip(widths, widths[1:], strides))
        )
        self.fc1 = nn.Linear(width, 128)
        self.fc2 = nn.Linear(128, 3)
        self.activation_fn = {"sigmoid": nn.Sigmoid(), "relu": nn.ReLU()}[config.light_rate_act]

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.activation_fn(self.fc2(self.fc1(self.convs(pixel_values).mean((2, 3))).relu()))


class MPGNetConvNorm(nn.Module):
    """A convolution without bias and BatchNorm."""

    def __init__(self, conv: nn.Module, eps: float):
        super().__init__()
        self.conv = conv
        self.norm = nn.BatchNorm2d(conv.out_channels, eps=eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(hidden_states))


class MPGNetBlur(nn.Module):
    """What diffraction adds to the darkened image, in [-1, 1]. (B, 3, H, W) -> (B, 3, H, W), H and W multiples of four"""

    def __init__(self, config: MPGNetConfig):
        super().__init__()
        full, half, quarter = (config.blur_hidden_size * factor for factor in (1, 2, 4))
        down = {"kernel_size": 3, "stride": 2, "padding": 1, "bias": False}
        up = {**down, "output_padding": 1}
        convs = [
            [reflecting_conv(3, full, 7, bias=False), nn.Conv2d(full, half, **down), nn.Conv2d(half, quarter, **down)],
            [reflecting_conv(quarter, quarter, bias=False) for _ in range(config.num_blur_layers)],
            [nn.ConvTranspose2d(quarter, half, **up), nn.ConvTranspose2d(half, full, **up)],
        ]
        self.downs, self.layers, self.ups = (
            nn.ModuleList(MPGNetConvNorm(conv, config.batch_norm_eps) for conv in part) for part in convs
        )
        self.conv_last = reflecting_conv(full, 3, 7)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        hidden_states = pixel_values
        for layer in self.downs:
            hidden_states = layer(hidden_states).relu()
        for layer in self.layers:
            hidden_states = hidden_states + layer(hidden_states)
        for layer in self.ups:
            hidden_states = layer(hidden_states).relu()
        return self.conv_last(hidden_states).tanh()


class MPGNetResidual(nn.Module):
    """x + conv(PReLU(conv(x)))"""

    def __init__(self, width: int, kernel_size: int, bias: bool):
        super().__init__()
        self.conv1 = reflecting_conv(width, width, kernel_size, bias)
        self.activation_fn = nn.PReLU()
        self.conv2 = reflecting_conv(width, width, kernel_size, bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.conv2(self.activation_fn(self.conv1(hidden_states)))


class MPGNetPipe(nn.Module):
    """Makes noise with spatial structure of noise without: a 1x1 convolution, then two branches that are added."""

    def __init__(self, width: int):
        super().__init__()
        self.merge = nn.Conv2d(width, width, 1)
        self.pointwise, self.spatial = (
            nn.Sequential(*(MPGNetResidual(width, size, bias=False) for size in sizes))
            for sizes in ((1, 1, 1), (1, 3, 1))
        )

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        noise = self.merge(noise)
        return self.pointwise(noise) + self.spatial(noise)


class MPGNetNoise(nn.Module):
    """Adds noise that depends on the image, noise that does not, and quantization noise. (B, 3, H, W) -> (B, 3, H, W)"""

    def __init__(self, config: MPGNetConfig):
        super().__init__()
        width, self.width = config.noise_hidden_size, config.noise_hidden_size
        self.features = nn.Sequential(reflecting_conv(3, width), nn.PReLU(), reflecting_conv(width, 2 * width))
        self.merge = nn.Sequential(reflecting_conv(2 * width + config.r_vector_size, 2 * width), nn.PReLU())
        self.layers = nn.Sequential(*(MPGNetResidual(2 * width, 3, bias=True) for _ in range(config.num_noise_layers)))
        self.dependent, self.independent, self.quantization = (MPGNetPipe(width) for _ in range(3))
        self.conv_noise = nn.Conv2d(width, 3, 1)
        self.quantization_features = nn.Sequential(
            reflecting_conv(3, width), nn.PReLU(), reflecting_conv(width, 2 * width)
        )
        self.conv_quantization = nn.Conv2d(width, 3, 1)

    def forward(
        self,
        pixel_values: torch.Tensor,
        r_vector: torch.Tensor,
        noise_dependent: torch.Tensor,
        noise_independent: torch.Tensor,
        noise_quantization: torch.Tensor,
    ) -> torch.Tensor:
        r_map = r_vector[:, :, None, None].expand(-1, -1, *pixel_values.shape[2:])
        features = self.layers(self.merge(torch.cat([self.features(pixel_values), r_map], 1)))
        mean, deviation = features.split(self.width, 1)
        dependent = self.dependent(mean + noise_dependent * (deviation.relu() + EPSILON))
        noisy = pixel_values + self.conv_noise(self.independent(noise_independent) + dependent)
        low = self.quantization_features(noisy)[:, : self.width]
        high = low + EPSILON
        return noisy + self.conv_quantization(self.quantization(low + noise_quantization * (high - low)))


class MPGNetSpectralConv(nn.Conv2d):
    """A convolution without bias whose matrix (out, -1) is divided by its largest singular value.

    In train mode each forward improves the estimate of its singular vectors by one power iteration.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, bias=False, **kwargs)
        self.register_buffer("left", torch.empty(self.out_channels))
        self.register_buffer("right", torch.empty(self.weight[0].numel()))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        matrix = self.weight.flatten(1)
        if self.training:
            with torch.no_grad():
                self.right.copy_(nn.functional.normalize(matrix.t() @ self.left, dim=0, eps=1e-12))
                self.left.copy_(nn.functional.normalize(matrix @ self.right, dim=0, eps=1e-12))
        # Clones, because the next forward overwrites the buffers, perhaps before this one's backward
        sigma = self.left.clone() @ (matrix @ self.right.clone())
        return self._conv_forward(hidden_states, self.weight / sigma, None)


class MPGNetPreTrainedModel(PreTrainedModel):
    config_class = MPGNetConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    accepts_loss_kwargs = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As the reference: narrow normal weights, but torch's default for transposed and spectrally normalized convolutions."""
        if isinstance(module, MPGNetSpectralConv):
            init_conv_as_torch(module)
            for buffer in (module.left, module.right):
                init.normal_(buffer)
                init.copy_(buffer, nn.functional.normalize(buffer, dim=0))
        elif isinstance(module, nn.ConvTranspose2d):
            init_conv_as_torch(module)
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            init_linear(module, self.config.initializer_range)
            if isinstance(module, nn.Linear):
                init.constant_(module.bias, 0.5)
        elif isinstance(module, nn.PReLU):
            init.constant_(module.weight, 0.25)
        elif isinstance(module, nn.BatchNorm2d):
            super()._init_weights(module)


def check_multiple(images: torch.Tensor, multiple: int, smallest: int) -> None:
    height, width = images.shape[2:]
    if height % multiple or width % multiple or min(height, width) < smallest:
        raise ValueError(
            f"Height and width must be multiples of {multiple} and at least {smallest}, not {height} and {width}"
        )


class MPGNetModel(MPGNetPreTrainedModel):
    """The simulator: darkens, blurs, adds noise (figure 2 of the paper)."""

    def __init__(self, config: MPGNetConfig):
        super().__init__(config)
        self.light_rate = MPGNetLightRate(config)
        self.blur = MPGNetBlur(config)
        self.noise = MPGNetNoise(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        r_vector: torch.Tensor | None = None,
        noise_dependent: torch.Tensor | None = None,
        noise_independent: torch.Tensor | None = None,
        noise_quantization: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        **kwargs,
    ) -> MPGNetOutput:
        """
        Args:
            pixel_values: clean images (B, 3, H, W) in [0, 1]; H and W multiples of 4, at least 8.
            r_vector: (B, r_vector_size), standard normal; what differs between displays and exposures.
            noise_dependent: (B, noise_hidden_size, H, W), standard normal.
            noise_independent, noise_quantization: (B, noise_hidden_size, H, W), uniform in [0, 1).
            generator: what random tensors that are not given are drawn from.

        Raises:
            ValueError: images of another shape, or sizes that are not allowed.
        """
        check_images(pixel_values, 3)
        check_multiple(pixel_values, 4, smallest=8)
        batch, _, height, width = pixel_values.shape
        noise_shape = (batch, self.config.noise_hidden_size, height, width)

        def drawn(given: torch.Tensor | None, draw, *shape: int) -> torch.Tensor:
            like = {"device": pixel_values.device, "dtype": pixel_values.dtype}
            return draw(shape, generator=generator, **like) if given is None else given

        light_rate = self.light_rate(pixel_values)
        darkened = light_rate[:, :, None, None] * pixel_values
        blurred = (darkened + self.blur(darkened)).clamp(0, 1)
        degraded = self.noise(
            blurred,
            drawn(r_vector, torch.randn, batch, self.config.r_vector_size),
            drawn(noise_dependent, torch.randn, *noise_shape),
            drawn(noise_independent, torch.rand, *noise_shape),
            drawn(noise_quantization, torch.rand, *noise_shape),
        )
        return MPGNetOutput(light_rate=light_rate, blurred_pixel_values=blurred, degraded_pixel_values=degraded)


class MPGNetDiscriminator(MPGNetPreTrainedModel):
    """Tells simulated from real images pixel by pixel, given the clean image: a U-shaped network with spectral norms."""

    def __init__(self, config: MPGNetConfig):
        super().__init__(config)
        width, channels = config.discriminator_hidden_size, config.discriminator_num_channels
        self.conv_first = nn.Conv2d(channels, width, 3, padding=1)
        self.downs = nn.ModuleList(
            MPGNetSpectralConv(width * factor, 2 * width * factor, 4, stride=2, padding=1) for factor in (1, 2, 4)
        )
        self.ups = nn.ModuleList(
            MPGNetSpectralConv(width * factor, width * factor // 2, 3, padding=1) for factor in (8, 4, 2)
        )
        self.convs = nn.ModuleList(MPGNetSpectralConv(width, width, 3, padding=1) for _ in range(2))
        self.conv_last = nn.Conv2d(width, 1, 3, padding=1)
        self.activation_fn = nn.LeakyReLU(0.2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        condition_pixel_values: torch.Tensor | None = None,
        target_pixel_values: torch.Tensor | None = None,
        **kwargs,
    ) -> MPGNetDiscriminatorOutput:
        """
        Args:
            pixel_values: simulated degraded images (B, 3, H, W); H and W multiples of 8.
            condition_pixel_values: the clean images that they were made of.
            target_pixel_values: real degraded images of the same scenes; with these all losses are computed.

        Raises:
            ValueError: images that differ in shape, or sizes that are not allowed.
        """
        given = [x for x in (pixel_values, condition_pixel_values, target_pixel_values) if x is not None]
        if len({x.shape for x in given}) != 1 or pixel_values is None or condition_pixel_values is None:
            raise ValueError(
                "`pixel_values`, `condition_pixel_values` and `target_pixel_values` must have one shape, not "
                f"{', '.join(str(tuple(x.shape)) for x in given) or 'nothing'}"
            )
        logits = self.judge(pixel_values, condition_pixel_values)
        if target_pixel_values is None:
            return MPGNetDiscriminatorOutput(logits=logits)
        target_logits = self.judge(target_pixel_values, condition_pixel_values)
        adversarial, pair = adversarial_loss(logits), nn.functional.l1_loss(pixel_values, target_pixel_values)
        return MPGNetDiscriminatorOutput(
            logits=logits,
            target_logits=target_logits,
            discriminator_loss=discriminator_loss(target_logits, logits),
            generator_adversarial_loss=adversarial,
            pair_loss=pair,
            generator_loss=generator_loss(adversarial, pair),
        )

    def judge(self, pixel_values: torch.Tensor, condition_pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) twice -> (B, 1, H, W)"""
        images = torch.cat([pixel_values, condition_pixel_values], 1)
        check_images(images, self.config.discriminator_num_channels)
        check_multiple(images, 8, smallest=8)
        hidden_states = self.activation_fn(self.conv_first(images))
        passed = []
        for conv in self.downs:
            passed.append(hidden_states)
            hidden_states = self.activation_fn(conv(hidden_states))
        for conv in self.ups:
            hidden_states = nn.functional.interpolate(
                hidden_states, scale_factor=2, mode="bilinear", align_corners=False
            )
            hidden_states = self.activation_fn(conv(hidden_states))
            if self.config.discriminator_skip_connection:
                hidden_states = hidden_states + passed.pop()
        for conv in self.convs:
            hidden_states = self.activation_fn(conv(hidden_states))
        return self.conv_last(hidden_states)


__all__ = ["MPGNetDiscriminator", "MPGNetDiscriminatorOutput", "MPGNetModel", "MPGNetOutput", "MPGNetPreTrainedModel"]
