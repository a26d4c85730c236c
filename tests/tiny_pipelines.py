"""Tiny stock pipelines of diffusers from text to images and to videos, made without a download.

Every pipeline is complete: its transformer, its autoencoder, its scheduler with the settings of the
published weights, and text encoders and tokenizers of its own kind. The weights are random, and the
same every time.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

# Neither tells a type checker what it exports.
D: Any = import_module("diffusers")
T: Any = import_module("transformers")

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<|im_start|>", "<|im_end|>")

# What the pipelines put round a prompt, and the prompts of the tests: a token a word, as the real
# tokenizers have it, for Qwen's pipeline drops the first 34 tokens, its preamble. Any other word is
# several tokens.
WORDS = """system
Describe the image by detailing the color, shape, size, texture, quantity, text, spatial \
relationships of the objects and background:
user
assistant
You are an assistant designed to generate superior images with the superior degree of image-text \
alignment based on textual prompts or user prompts. <Prompt Start> a red boot
a small blue bag with a green handle
boot bag red blue green small handle"""

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# The sizes that most transformers share, then those of the text encoders and of latent channels.
NET = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8}
IN_OUT = {"in_channels": 4, "out_channels": 4}
DEPTH: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2}
DEPTH |= {"hidden_size": 16, "intermediate_size": 32}
DECODER: dict[str, Any] = {**DEPTH, "num_key_value_heads": 1, "head_dim": 8}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
MOMENTS = {"latents_mean": [0.1, -0.2, 0.3, -0.4], "latents_std": [1.5, 1.0, 0.5, 2.0]}

_IMAGE = {"height": 16, "width": 16, "max_sequence_length": 32}
_LARGE = {"height": 32, "width": 32, "max_sequence_length": 32}
_VIDEO = {**_LARGE, "num_frames": 9}

SIZES: dict[str, dict[str, Any]] = {
    "sd3": _IMAGE,
    "flux": _IMAGE,
    "qwen": _LARGE,
    "zimage": _IMAGE,
    "sana": {**_LARGE, "use_resolution_binning": False, "complex_human_instruction": None},
    "lumina2": {**_LARGE, "max_sequence_length": 64},  # it has the system's prompt before its own
    "wan": _VIDEO,
    "ltx": _VIDEO,
    "wan22": _VIDEO,
}
"""What a call of each family is given for a tiny image or video."""


def _tokenizer(around: str, length: int, **settings: Any) -> Any:
    """A tokenizer of bytes and of the known words, which has different tokens for any two texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    inner: Any = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer: Any = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([WORDS], trainer)
    inner.post_processor = processors.TemplateProcessing(
        single=around, special_tokens=[(word, SPECIAL.index(word)) for word in ("<bos>", "<eos>")]
    )
    names = {f"{word[1:-1]}_token": word for word in SPECIAL[:4]}
    return T.PreTrainedTokenizerFast(
        tokenizer_object=inner, model_max_length=length, padding_side="right", **names, **settings
    )


def _text(
    encoder: str, config: str, around: str = "$A", length: int = 512, **settings: Any
) -> tuple[Any, Any]:
    """The text encoder of transformers by its class and its configuration's, and its tokenizer."""
    tokenizer = _tokenizer(around, length, chat_template=settings.pop("chat_template", None))
    tokens = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "vocab_size": len(tokenizer)}
    if "text_config" in settings:
        settings["text_config"] |= tokens
    return getattr(T, encoder)(getattr(T, config)(**settings, **tokens)), tokenizer


def _clip(encoder: str) -> tuple[Any, Any]:
    return _text(encoder, "CLIPTextConfig", "<bos> $A <eos>", 77, projection_dim=8, **DEPTH)


def _t5(name: str = "T5") -> tuple[Any, Any]:
    return _text(f"{name}EncoderModel", f"{name}Config", "$A <eos>", **T5)


def _gemma() -> tuple[Any, Any]:
    return _text("Gemma2Model", "Gemma2Config", "<bos> $A", **DECODER)


def _qwen_vl() -> tuple[Any, Any]:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}
    seen = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
    return _text(
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen2_5_VLConfig",
        length=2048,
        text_config={**DECODER, "rope_parameters": rope},
        vision_config={**seen, "out_hidden_size": 16},
    )


def _vae(blocks: int = 2) -> Any:
    return D.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=(4,) * blocks,
        latent_channels=4,
        norm_num_groups=2,
        scaling_factor=1.5,
        shift_factor=0.06,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _sd3() -> Any:
    transformer = D.SD3Transformer2DModel(
        sample_size=8,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
        **NET,
        **IN_OUT,
    )
    clip = "CLIPTextModelWithProjection"
    scheduler = D.FlowMatchEulerDiscreteScheduler(shift=3.0)
    texts = (*_clip(clip), *_clip(clip), *_t5())
    return D.StableDiffusion3Pipeline(transformer, scheduler, _vae(), *texts)


def _flux() -> Any:
    transformer = D.FluxTransformer2DModel(
        in_channels=16,
        num_single_layers=1,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        guidance_embeds=True,
        axes_dims_rope=(4, 2, 2),
        **NET,
    )
    scheduler = D.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return D.FluxPipeline(scheduler, _vae(), *_clip("CLIPTextModel"), *_t5(), transformer)


def _qwen() -> Any:
    transformer = D.QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, joint_attention_dim=16, axes_dims_rope=(4, 2, 2), **NET
    )
    blocks = {"dim_mult": [1, 1, 1], "num_res_blocks": 1, "temperal_downsample": [False, True]}
    vae = D.AutoencoderKLQwenImage(base_dim=4, z_dim=4, **blocks, **MOMENTS)
    scheduler = D.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
    )
    return D.QwenImagePipeline(scheduler, vae, *_qwen_vl(), transformer)


def _zimage() -> Any:
    transformer = D.ZImageTransformer2DModel(
        in_channels=4,
        dim=16,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 2, 2],
        axes_lens=[1024, 32, 32],
    )
    qwen = _text("Qwen3Model", "Qwen3Config", chat_template=CHAT, **DECODER)
    scheduler = D.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return D.ZImagePipeline(scheduler, _vae(), *qwen, transformer)


def _sana() -> Any:
    transformer = D.SanaTransformer2DModel(
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        **NET,
        **IN_OUT,
    )
    vae = D.AutoencoderDC(
        latent_channels=4,
        encoder_block_out_channels=(4, 4, 4),
        decoder_block_out_channels=(4, 4, 4),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        scaling_factor=0.41407,
    )
    scheduler = D.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    encoder, tokenizer = _gemma()
    return D.SanaPipeline(tokenizer, encoder, vae, transformer, scheduler)


def _lumina2() -> Any:
    transformer = D.Lumina2Transformer2DModel(
        sample_size=4,
        in_channels=4,
        hidden_size=16,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(512, 32, 32),
        cap_feat_dim=16,
    )
    scheduler = D.FlowMatchEulerDiscreteScheduler(shift=6.0)
    # The pipeline holds that a latent is eight pixels wide, whatever its autoencoder is.
    return D.Lumina2Pipeline(transformer, scheduler, _vae(4), *_gemma())


def _wan(pair: bool = False) -> Any:
    """Wan 2.1, or as a pair 2.2: two transformers, the second for the low noise."""
    size = {"text_dim": 32, "freq_dim": 32, "ffn_dim": 32, "rope_max_seq_len": 32}
    nets = [D.WanTransformer3DModel(**size, **NET, **IN_OUT) for _ in range(1 + pair)]
    vae = D.AutoencoderKLWan(base_dim=4, z_dim=4, dim_mult=[1] * 4, num_res_blocks=1, **MOMENTS)
    scheduler = D.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    encoder, tokenizer = _t5("UMT5")
    boundary = 0.875 if pair else None
    return D.WanPipeline(tokenizer, encoder, vae, scheduler, *nets, boundary_ratio=boundary)


def _ltx() -> Any:
    transformer = D.LTXVideoTransformer3DModel(
        cross_attention_dim=16, caption_channels=32, **NET, **IN_OUT
    )
    vae = D.AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(4,) * 4,
        decoder_block_out_channels=(4,) * 4,
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        patch_size=1,
    )
    shift = {"base_shift": 0.95, "max_shift": 2.05, "shift_terminal": 0.1}
    scheduler = D.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_image_seq_len=1024, **shift
    )
    return D.LTXPipeline(scheduler, vae, *_t5(), transformer)


FAMILIES: dict[str, Callable[[], Any]] = {
    "sd3": _sd3,
    "flux": _flux,
    "qwen": _qwen,
    "zimage": _zimage,
    "sana": _sana,
    "lumina2": _lumina2,
    "wan": _wan,
    "ltx": _ltx,
    "wan22": lambda: _wan(pair=True),
}
"""How each family's pipeline is built; `make` gives it the weights of every time."""


@torch.no_grad()
def _enliven(transformer: Any) -> None:
    """Let no weight be zero, and let the output depend well on the time and on the text.

    The attention is made sharp, as that of a random network gives a prompt's few words no weight.
    """
    for name, parameter in transformer.named_parameters():
        if not parameter.any():
            parameter.normal_(std=0.1)
        elif parameter.ndim > 1:
            parameter.mul_(2.0)
        elif "norm_q" in name or "norm_k" in name:
            parameter.mul_(3.0)


def make(family: str) -> Any:
    """The family's pipeline, ready for a call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = FAMILIES[family]()
        for name, part in pipe.components.items():
            if isinstance(part, torch.nn.Module):
                part.eval()
            if name.startswith("transformer") and part is not None:
                _enliven(part)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save(family: str, folder: Path) -> Path:
    """The folder, with the family's pipeline saved in it."""
    make(family).save_pretrained(folder, safe_serialization=True)
    return folder
