"""SDXL base 1.0's published configurations, and the parameter schema of any SDXL configuration.

From the ``config.json`` files of stabilityai/stable-diffusion-xl-base-1.0 (CreativeML Open
RAIL++-M; see NOTICE), as far as they determine shapes or arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator

from assets.content import Component
from assets.families.config import Configs, ModelConfig
from assets.families.schema import ParameterSchema, Shape

SDXL_CONFIGS: Configs = {
    "unet": {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "attention_head_dim": [5, 10, 20],
        "block_out_channels": [320, 640, 1280],
        "center_input_sample": False,
        "cross_attention_dim": 2048,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": 4,
        "projection_class_embeddings_input_dim": 2816,
        "sample_size": 128,
        "transformer_layers_per_block": [1, 2, 10],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "use_linear_projection": True,
    },
    "text_encoder": {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "hidden_act": "quick_gelu",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "projection_dim": 768,
        "vocab_size": 49408,
    },
    "text_encoder_2": {
        "architectures": ["CLIPTextModelWithProjection"],
        "model_type": "clip_text_model",
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "hidden_act": "gelu",
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "num_attention_heads": 20,
        "num_hidden_layers": 32,
        "projection_dim": 1280,
        "vocab_size": 49408,
    },
    "vae": {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "force_upcast": True,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 1024,
        "scaling_factor": 0.13025,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
}

#: SDXL's training noise schedule.
SDXL_SCHEDULE: ModelConfig = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}

#: Change arithmetic but no shape; only SDXL's are served.
_ARITHMETIC: Configs = {
    "unet": {
        "act_fn": "silu", "addition_embed_type": "text_time", "center_input_sample": False,
        "class_embed_type": None, "encoder_hid_dim_type": None, "flip_sin_to_cos": True,
        "freq_shift": 0, "norm_eps": 1e-05, "resnet_time_scale_shift": "default",
        "time_cond_proj_dim": None, "use_linear_projection": True,
    },
    "text_encoder": {"hidden_act": "quick_gelu"},
    "text_encoder_2": {"hidden_act": "gelu"},
    "vae": {
        "latents_mean": None, "latents_std": None, "scaling_factor": 0.13025, "shift_factor": None,
    },
}  # fmt: skip


def other_arithmetic(component: Component, config: ModelConfig) -> list[str]:
    """Return messages for configuration values not served. Pure."""
    return [
        f"its config.json sets {name} to {config[name]!r:.60}; only {served!r} is served"
        for name, served in _ARITHMETIC.get(component, {}).items()
        if name in config and config[name] != served
    ]


Named = Iterator[tuple[str, Shape]]


def schema_of(configs: Configs) -> ParameterSchema:
    """Return the schema of SDXL's topology, at any width. Pure."""
    return ParameterSchema(
        {
            "unet": dict(_unet(configs["unet"])),
            "text_encoder": dict(_clip(configs["text_encoder"], projection=False)),
            "text_encoder_2": dict(_clip(configs["text_encoder_2"], projection=True)),
            "vae": dict(_vae(configs["vae"])),
        }
    )


def _affine(name: str, *shape: int) -> Named:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _unet(config: ModelConfig) -> Named:
    channels: list[int] = config["block_out_channels"]
    depths: list[int] = config["transformer_layers_per_block"]
    context: int = config["cross_attention_dim"]
    layers: int = config["layers_per_block"]
    time = channels[0] * 4
    yield from _affine("conv_in", channels[0], config["in_channels"], 3, 3)
    yield from _affine("time_embedding.linear_1", time, channels[0])
    yield from _affine("time_embedding.linear_2", time, time)
    pooled = config["projection_class_embeddings_input_dim"]
    yield from _affine("add_embedding.linear_1", time, pooled)
    yield from _affine("add_embedding.linear_2", time, time)

    before = channels[0]
    for block, kind in enumerate(config["down_block_types"]):
        width, prefix = channels[block], f"down_blocks.{block}"
        for layer in range(layers):
            yield from _resnet(f"{prefix}.resnets.{layer}", before, width, time)
            before = width
            if kind.startswith("CrossAttn"):
                name = f"{prefix}.attentions.{layer}"
                yield from _transformer(name, width, context, depths[block])
        if block < len(channels) - 1:
            yield from _affine(f"{prefix}.downsamplers.0.conv", width, width, 3, 3)

    deepest = channels[-1]
    yield from _resnet("mid_block.resnets.0", deepest, deepest, time)
    yield from _transformer("mid_block.attentions.0", deepest, context, depths[-1])
    yield from _resnet("mid_block.resnets.1", deepest, deepest, time)

    rising = channels[::-1]
    for block, kind in enumerate(config["up_block_types"]):
        width, prefix = rising[block], f"up_blocks.{block}"
        lowest_skip = rising[min(block + 1, len(rising) - 1)]
        for layer in range(layers + 1):
            skip = lowest_skip if layer == layers else width
            yield from _resnet(f"{prefix}.resnets.{layer}", before + skip, width, time)
            before = width
            if kind.startswith("CrossAttn"):
                name = f"{prefix}.attentions.{layer}"
                yield from _transformer(name, width, context, depths[::-1][block])
        if block < len(channels) - 1:
            yield from _affine(f"{prefix}.upsamplers.0.conv", width, width, 3, 3)
    yield from _affine("conv_norm_out", channels[0])
    yield from _affine("conv_out", config["out_channels"], channels[0], 3, 3)


def _resnet(name: str, before: int, after: int, time: int | None) -> Named:
    yield from _affine(f"{name}.norm1", before)
    yield from _affine(f"{name}.conv1", after, before, 3, 3)
    if time is not None:
        yield from _affine(f"{name}.time_emb_proj", after, time)
    yield from _affine(f"{name}.norm2", after)
    yield from _affine(f"{name}.conv2", after, after, 3, 3)
    if before != after:
        yield from _affine(f"{name}.conv_shortcut", after, before, 1, 1)


def _transformer(name: str, width: int, context: int, depth: int) -> Named:
    yield from _affine(f"{name}.norm", width)
    yield from _affine(f"{name}.proj_in", width, width)
    for index in range(depth):
        block = f"{name}.transformer_blocks.{index}"
        for attention, source in (("attn1", width), ("attn2", context)):
            yield f"{block}.{attention}.to_q.weight", (width, width)
            yield f"{block}.{attention}.to_k.weight", (width, source)
            yield f"{block}.{attention}.to_v.weight", (width, source)
            yield from _affine(f"{block}.{attention}.to_out.0", width, width)
        yield from _affine(f"{block}.ff.net.0.proj", width * 8, width)
        yield from _affine(f"{block}.ff.net.2", width, width * 4)
        for norm in ("norm1", "norm2", "norm3"):
            yield from _affine(f"{block}.{norm}", width)
    yield from _affine(f"{name}.proj_out", width, width)


def _clip(config: ModelConfig, *, projection: bool) -> Named:
    width, inner = config["hidden_size"], config["intermediate_size"]
    embeddings = "text_model.embeddings"
    yield f"{embeddings}.token_embedding.weight", (config["vocab_size"], width)
    yield f"{embeddings}.position_embedding.weight", (config["max_position_embeddings"], width)
    for index in range(config["num_hidden_layers"]):
        layer = f"text_model.encoder.layers.{index}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _affine(f"{layer}.self_attn.{part}", width, width)
        yield from _affine(f"{layer}.layer_norm1", width)
        yield from _affine(f"{layer}.layer_norm2", width)
        yield from _affine(f"{layer}.mlp.fc1", inner, width)
        yield from _affine(f"{layer}.mlp.fc2", width, inner)
    yield from _affine("text_model.final_layer_norm", width)
    if projection:
        yield "text_projection.weight", (config["projection_dim"], width)


def _vae(config: ModelConfig) -> Named:
    channels: list[int] = config["block_out_channels"]
    layers: int = config["layers_per_block"]
    latent: int = config["latent_channels"]
    yield from _affine("encoder.conv_in", channels[0], config["in_channels"], 3, 3)
    before = channels[0]
    for block, width in enumerate(channels):
        for layer in range(layers):
            name = f"encoder.down_blocks.{block}.resnets.{layer}"
            yield from _resnet(name, before, width, None)
            before = width
        if block < len(channels) - 1:
            name = f"encoder.down_blocks.{block}.downsamplers.0.conv"
            yield from _affine(name, width, width, 3, 3)
    yield from _vae_middle("encoder", before)
    yield from _affine("encoder.conv_norm_out", before)
    yield from _affine("encoder.conv_out", 2 * latent, before, 3, 3)

    yield from _affine("decoder.conv_in", before, latent, 3, 3)
    yield from _vae_middle("decoder", before)
    for block, width in enumerate(channels[::-1]):
        for layer in range(layers + 1):
            name = f"decoder.up_blocks.{block}.resnets.{layer}"
            yield from _resnet(name, before, width, None)
            before = width
        if block < len(channels) - 1:
            yield from _affine(f"decoder.up_blocks.{block}.upsamplers.0.conv", width, width, 3, 3)
    yield from _affine("decoder.conv_norm_out", before)
    yield from _affine("decoder.conv_out", config["out_channels"], before, 3, 3)
    yield from _affine("quant_conv", 2 * latent, 2 * latent, 1, 1)
    yield from _affine("post_quant_conv", latent, latent, 1, 1)


def _vae_middle(side: str, width: int) -> Named:
    yield from _resnet(f"{side}.mid_block.resnets.0", width, width, None)
    yield from _affine(f"{side}.mid_block.attentions.0.group_norm", width)
    for part in ("to_q", "to_k", "to_v", "to_out.0"):
        yield from _affine(f"{side}.mid_block.attentions.0.{part}", width, width)
    yield from _resnet(f"{side}.mid_block.resnets.1", width, width, None)
