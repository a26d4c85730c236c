"""The parts of the pipeline of ``small_pipeline.py``, and how its two networks are trained."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from captions import SIDE
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from bezierdistill.progress import progress

CHANNELS, LATENT = 4, 8  # of a latent image, and its side
WORDS, WIDTH, ZEROS = 8, 64, 256  # tokens of a caption, width of an encoder, rows in T5's place
SPECIAL = ("<pad>", "<unk>", "<start>", "<end>")
VAE_RATE, FLOW_RATE, VAE_BATCH, BATCH, DECAY = 4e-3, 2e-3, 16, 64, 0.998
UNSAID, KL = 0.1, 1e-6  # share without a caption; weight of the autoencoder's divergence
LONG, FEW = 10, 8  # one step of LONG has FEW rows, and the zeros


def make_vae() -> Any:
    """An autoencoder from 32x32 pixels to 8x8x4."""
    channels: Any = (16, 16, 32)
    down, up = ((f"{name}Block2D",) * len(channels) for name in ("DownEncoder", "UpDecoder"))
    settings: dict[str, Any] = {"down_block_types": down, "up_block_types": up}
    return AutoencoderKL(
        **settings,
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        sample_size=SIDE,
    )


def make_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """A token per word; whatever the case."""
    vocabulary = {word: k for k, word in enumerate((*SPECIAL, *words))}
    own = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    own.normalizer = normalizers.Lowercase()
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(word, vocabulary[word]) for word in SPECIAL[2:]]
    own.post_processor = processors.TemplateProcessing("<start> $A <end>", special_tokens=ends)
    pad, unknown, start, end = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=own,
        model_max_length=WORDS,
        pad_token=pad,
        unk_token=unknown,
        bos_token=start,
        eos_token=end,
    )


def make_encoder(words: int) -> CLIPTextModelWithProjection:
    """A text encoder of random weights, which stay: words and their places are all that it has to
    tell, in numbers of about one.
    """
    config = CLIPTextConfig(
        vocab_size=words + len(SPECIAL),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=WORDS,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    encoder = CLIPTextModelWithProjection(config)
    embeddings = encoder.text_model.embeddings
    with torch.no_grad():
        embeddings.token_embedding.weight.mul_(50)
        embeddings.token_embedding.weight[config.eos_token_id] = 0  # where it gathers the words
        embeddings.position_embedding.weight.mul_(10)
    return encoder.eval().requires_grad_(False)


def make_silent() -> tuple[PreTrainedTokenizerFast, T5EncoderModel]:
    """A T5 that reads nothing and says zeros, which is what diffusers puts in the place of one that
    is missing; ``from_pretrained`` would have to be told that it is.
    """
    own = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1}, unk_token="<pad>"))
    own.normalizer = normalizers.Replace(Regex(".+"), "")
    own.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=own, pad_token="<pad>", eos_token="</s>")
    sizes: dict[str, Any] = {
        "d_model": 2 * WIDTH,
        "d_kv": 8,
        "d_ff": 8,
        "num_layers": 1,
        "num_heads": 1,
    }
    encoder = T5EncoderModel(T5Config(vocab_size=2, **sizes))
    nn.init.zeros_(encoder.encoder.final_layer_norm.weight)
    return tokenizer, encoder.eval().requires_grad_(False)


def make_transformer() -> SD3Transformer2DModel:
    """Four blocks over 4x4 patches of the latent image; as it starts, every block passes its input
    on and the output is zero (Peebles & Xie 2023, arXiv 2212.09748).
    """
    network = SD3Transformer2DModel(
        sample_size=LATENT,
        patch_size=2,
        in_channels=CHANNELS,
        num_layers=4,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=128,
        pooled_projection_dim=2 * WIDTH,
        out_channels=CHANNELS,
        pos_embed_max_size=LATENT // 2,
        qk_norm="rms_norm",
    )
    for name, weight in network.named_parameters():
        if (".norm1" in name and "linear" in name) or name.startswith("proj_out"):
            nn.init.zeros_(weight)
    return network


def train(modules: Any, loss: Callable[[int], Tensor], steps: int, rate: float, name: str) -> Any:
    """AdamW with a rising and falling rate; a moving average of the weights."""
    optimizer = torch.optim.AdamW(
        modules.parameters(), rate, (0.9, 0.99), weight_decay=0.01, fused=True
    )
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    average = deepcopy(modules).eval().requires_grad_(False)
    kept, new = list(average.parameters()), [own.detach() for own in modules.parameters()]
    recent, told = 0.0, time.perf_counter()
    with progress(name, steps) as advance:
        for step in range(steps):
            value = loss(step)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
            optimizer.step()
            rates.step()
            decay = min(DECAY, (1 + step) / (10 + step))
            for mean, own in zip(kept, new, strict=True):
                mean.lerp_(own, 1 - decay)
            recent += (float(value.detach()) - recent) * max(0.01, 1 / (1 + step))
            if (step + 1) % 200 == 0:
                spent = time.perf_counter() - told
                print(f"{name} {step + 1}/{steps}: loss {recent:.4f}, {spent:.0f} s", flush=True)
            advance(1)
    return average


def train_vae(images: Tensor, steps: int, seed: int) -> Any:
    """An autoencoder of images in [-1, 1], with the scale and shift of its latents."""
    torch.manual_seed(seed)
    vae = make_vae()

    def loss(step: int) -> Tensor:
        x = images[torch.randint(len(images), (VAE_BATCH,))]
        posterior = vae.encode(x).latent_dist
        off = vae.decode(posterior.sample()).sample - x
        return off.square().mean() + KL * posterior.kl().mean()

    average = train(vae, loss, steps, VAE_RATE, "autoencoder")
    latents = encode(average, images[:4096])
    average.register_to_config(
        scaling_factor=float(1 / latents.std()), shift_factor=float(latents.mean())
    )
    return average


@torch.no_grad()
def encode(vae: Any, images: Tensor) -> Tensor:
    """Latents of images in [-1, 1], as the autoencoder has them."""
    return torch.cat([vae.encode(part).latent_dist.mean for part in images.split(256)])


@dataclass
class Texts:
    """What the pipeline makes of captions: rows for each and for the empty one, which is last."""

    tokens: Tensor
    pooled: Tensor
    row: dict[str, int]


@torch.no_grad()
def encode_texts(pipeline: Any, captions: list[str]) -> Texts:
    """Every different caption once."""
    known = [*sorted(set(captions)), ""]
    tokens, _, pooled, _ = pipeline.encode_prompt(
        known, None, None, do_classifier_free_guidance=False, max_sequence_length=1
    )
    return Texts(tokens, pooled, {caption: k for k, caption in enumerate(known)})


def train_transformer(
    network: SD3Transformer2DModel, latents: Tensor, texts: Texts, rows: Tensor, steps: int
) -> SD3Transformer2DModel:
    """Flow matching at logit-normal times (Esser et al. 2024, arXiv 2403.03206)."""

    def loss(step: int) -> Tensor:
        long = step % LONG == LONG - 1
        count = FEW if long else BATCH
        chosen = torch.randint(len(latents), (count,))
        noise, sigma = torch.randn(count, *latents.shape[1:]), torch.randn(count).sigmoid()
        said = torch.where(torch.rand(count) < UNSAID, len(texts.tokens) - 1, rows[chosen])
        x = torch.lerp(latents[chosen], noise, sigma[:, None, None, None])
        velocity = network(
            x,
            functional.pad(texts.tokens[said], (0, 0, 0, ZEROS - 1 if long else 0)),
            texts.pooled[said],
            1000 * sigma,
        ).sample
        return functional.mse_loss(velocity, noise - latents[chosen])

    return train(network, loss, steps, FLOW_RATE, "transformer")
