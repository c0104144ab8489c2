"""LlamaGen by its paper and published format, independent of the package: a checkpoint of random weights, and what a model of them computes.

Everything is float64 but for what the published forward takes to float32 (normalisation). Names and shapes of tensors are the published ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

CODES, SIDE, PREFIX, FEATURES = 24, 4, 12, 16
WIDTH, HEADS, LAYERS, INNER = 32, 4, 2, 48
BASE, LATENT, CODE_DIM = 32, 8, 4

State = dict[str, torch.Tensor]


def gpt_state() -> State:
    torch.manual_seed(0)

    def matrix(rows: int, columns: int, scale: float = 0.4) -> torch.Tensor:
        return scale * torch.randn(rows, columns, dtype=torch.float64)

    state = {
        "cls_embedding.uncond_embedding": matrix(PREFIX, FEATURES, 1.0),
        "cls_embedding.cap_proj.fc1.weight": matrix(WIDTH, FEATURES),
        "cls_embedding.cap_proj.fc2.weight": matrix(WIDTH, WIDTH),
        "tok_embeddings.weight": matrix(CODES, WIDTH, 1.0),
        "norm.weight": 1 + 0.1 * torch.randn(WIDTH, dtype=torch.float64),
        "output.weight": matrix(CODES, WIDTH),
    }
    for layer in range(LAYERS):
        state |= {
            f"layers.{layer}.attention.wqkv.weight": matrix(3 * WIDTH, WIDTH),
            f"layers.{layer}.attention.wo.weight": matrix(WIDTH, WIDTH),
            f"layers.{layer}.feed_forward.w1.weight": matrix(INNER, WIDTH),
            f"layers.{layer}.feed_forward.w3.weight": matrix(INNER, WIDTH),
            f"layers.{layer}.feed_forward.w2.weight": matrix(WIDTH, INNER),
            f"layers.{layer}.attention_norm.weight": 1 + 0.1 * torch.randn(WIDTH, dtype=torch.float64),
            f"layers.{layer}.ffn_norm.weight": 1 + 0.1 * torch.randn(WIDTH, dtype=torch.float64),
        }
    return state


def _normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    low = x.float()
    return (low / (low.square().mean(-1, keepdim=True) + 1e-5).sqrt()).to(x.dtype) * weight


def _turns() -> torch.Tensor:
    """Complex ``[PREFIX + SIDE², head_dim/2]``: 0 in the prefix; then e^{iθ}, for the first half of pairs by row and for the second by column."""
    half = WIDTH // HEADS // 2
    frequencies = 10_000.0 ** (-torch.arange(0, half, 2, dtype=torch.float64) / half)
    cells = [torch.cat([row * frequencies, column * frequencies]) for row in range(SIDE) for column in range(SIDE)]
    angles = torch.stack(cells)
    return torch.cat([torch.zeros(PREFIX, half, dtype=torch.complex128), torch.polar(torch.ones_like(angles), angles)])


def gpt_logits(state: State, features: torch.Tensor, valid: int, tokens: list[int]) -> torch.Tensor:
    """Logits ``[1 + N, CODES]`` behind the prefix and behind each token; of the prefix the last ``valid`` inputs are seen."""
    caption = F.gelu(features @ state["cls_embedding.cap_proj.fc1.weight"].T, approximate="tanh") @ state["cls_embedding.cap_proj.fc2.weight"].T
    x = torch.cat([caption, state["tok_embeddings.weight"][torch.tensor(tokens, dtype=torch.int64)]])
    count, turns = len(x), _turns()[: len(x), None]
    sees = torch.ones(count, count, dtype=torch.bool).tril()
    sees[:, : PREFIX - valid] = False
    sees |= torch.eye(count, dtype=torch.bool)

    def turned(heads: torch.Tensor) -> torch.Tensor:
        return torch.view_as_real(torch.view_as_complex(heads.unflatten(-1, (-1, 2)).contiguous()) * turns).flatten(-2)

    for layer in range(LAYERS):
        weight = {name.removeprefix(f"layers.{layer}."): value for name, value in state.items() if name.startswith(f"layers.{layer}.")}
        qkv = _normed(x, weight["attention_norm.weight"]) @ weight["attention.wqkv.weight"].T
        query, key, value = (part.view(count, HEADS, -1) for part in qkv.split(WIDTH, -1))
        scores = torch.einsum("thd,shd->hts", turned(query), turned(key)) * (WIDTH // HEADS) ** -0.5
        seen = torch.einsum("hts,shd->thd", scores.masked_fill(~sees, -torch.inf).softmax(-1), value)
        x = x + seen.reshape(count, WIDTH) @ weight["attention.wo.weight"].T
        inner = _normed(x, weight["ffn_norm.weight"])
        gated = F.silu(inner @ weight["feed_forward.w1.weight"].T) * (inner @ weight["feed_forward.w3.weight"].T)
        x = x + gated @ weight["feed_forward.w2.weight"].T
    return (_normed(x, state["norm.weight"]) @ state["output.weight"].T)[PREFIX - 1 :]


def vq_state() -> State:
    """Two levels of one residual block: channels 32, then 64 with attention."""
    torch.manual_seed(1)
    state = {
        "quantize.embedding.weight": torch.randn(CODES, CODE_DIM, dtype=torch.float64),
        "quantize.codebook_used": torch.zeros(64, dtype=torch.float64),
    }

    def conv(name: str, inputs: int, outputs: int, size: int = 3) -> None:
        layer = nn.Conv2d(inputs, outputs, size).double()
        state[f"{name}.weight"], state[f"{name}.bias"] = layer.weight.data, layer.bias.data

    def norm(name: str, channels: int) -> None:
        state[f"{name}.weight"] = 1 + 0.1 * torch.randn(channels, dtype=torch.float64)
        state[f"{name}.bias"] = 0.1 * torch.randn(channels, dtype=torch.float64)

    def residual(name: str, inputs: int, outputs: int) -> None:
        norm(f"{name}.norm1", inputs)
        conv(f"{name}.conv1", inputs, outputs)
        norm(f"{name}.norm2", outputs)
        conv(f"{name}.conv2", outputs, outputs)
        if inputs != outputs:
            conv(f"{name}.nin_shortcut", inputs, outputs, 1)

    def attention(name: str, channels: int) -> None:
        norm(f"{name}.norm", channels)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.{part}", channels, channels, 1)

    def half(name: str, first: tuple[int, int], last: tuple[int, int], levels: list[tuple[int, int, int, str]]) -> None:
        conv(f"{name}.conv_in", *first)
        for level, (inputs, outputs, blocks, resampled) in enumerate(levels):
            for block in range(blocks):
                residual(f"{name}.conv_blocks.{level}.res.{block}", inputs if block == 0 else outputs, outputs)
                if outputs == 2 * BASE:
                    attention(f"{name}.conv_blocks.{level}.attn.{block}", outputs)
            if resampled:
                conv(f"{name}.conv_blocks.{level}.{resampled}.conv", outputs, outputs)
        for place in (0, 2):
            residual(f"{name}.mid.{place}", 2 * BASE, 2 * BASE)
        attention(f"{name}.mid.1", 2 * BASE)
        norm(f"{name}.norm_out", last[0])
        conv(f"{name}.conv_out", *last)

    half("encoder", (3, BASE), (2 * BASE, LATENT), [(BASE, BASE, 1, "downsample"), (BASE, 2 * BASE, 1, "")])
    half("decoder", (LATENT, 2 * BASE), (BASE, 3), [(2 * BASE, 2 * BASE, 2, "upsample"), (2 * BASE, BASE, 2, "")])
    conv("quant_conv", LATENT, CODE_DIM, 1)
    conv("post_quant_conv", CODE_DIM, LATENT, 1)
    return state


class VQ:
    """Decoder and encoder of a ``vq_state``."""

    def __init__(self, state: State):
        self.state = state

    def _conv(self, name: str, x: torch.Tensor, stride: int = 1, padding: int | None = None) -> torch.Tensor:
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, self.state[f"{name}.bias"], stride, weight.shape[-1] // 2 if padding is None else padding)

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.group_norm(x, 32, self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1e-6)

    def _residual(self, name: str, x: torch.Tensor) -> torch.Tensor:
        h = self._conv(f"{name}.conv1", F.silu(self._norm(f"{name}.norm1", x)))
        h = self._conv(f"{name}.conv2", F.silu(self._norm(f"{name}.norm2", h)))
        return h + (self._conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in self.state else x)

    def _attention(self, name: str, x: torch.Tensor) -> torch.Tensor:
        normed = self._norm(f"{name}.norm", x)
        query, key, value = (self._conv(f"{name}.{part}", normed).flatten(2) for part in "qkv")
        weights = (query.transpose(1, 2) @ key / x.shape[1] ** 0.5).softmax(-1)
        return x + self._conv(f"{name}.proj_out", (value @ weights.transpose(1, 2)).view_as(x))

    def _level(self, name: str, x: torch.Tensor, blocks: int) -> torch.Tensor:
        for block in range(blocks):
            x = self._residual(f"{name}.res.{block}", x)
            if f"{name}.attn.{block}.q.weight" in self.state:
                x = self._attention(f"{name}.attn.{block}", x)
        return x

    def _middle(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self._residual(f"{name}.mid.2", self._attention(f"{name}.mid.1", self._residual(f"{name}.mid.0", x)))

    def _end(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self._conv(f"{name}.conv_out", F.silu(self._norm(f"{name}.norm_out", x)))

    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Pixels ``[B, 3, 2·SIDE, 2·SIDE]`` of ``tokens [B, SIDE²]``."""
        codes = F.normalize(self.state["quantize.embedding.weight"], dim=-1)[tokens]
        x = self._conv("decoder.conv_in", self._conv("post_quant_conv", codes.view(-1, SIDE, SIDE, CODE_DIM).permute(0, 3, 1, 2)))
        x = self._level("decoder.conv_blocks.0", self._middle("decoder", x), 2)
        x = self._conv("decoder.conv_blocks.0.upsample.conv", x.repeat_interleave(2, 2).repeat_interleave(2, 3))
        return self._end("decoder", self._level("decoder.conv_blocks.1", x, 2))

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Tokens ``[B, SIDE²]``: the nearest entry, both of length one."""
        x = self._level("encoder.conv_blocks.0", self._conv("encoder.conv_in", pixels), 1)
        x = self._conv("encoder.conv_blocks.0.downsample.conv", F.pad(x, (0, 1, 0, 1)), stride=2, padding=0)
        x = self._end("encoder", self._middle("encoder", self._level("encoder.conv_blocks.1", x, 1)))
        latents = F.normalize(self._conv("quant_conv", x), dim=1).permute(0, 2, 3, 1).reshape(len(pixels), -1, 1, CODE_DIM)
        return (latents - F.normalize(self.state["quantize.embedding.weight"], dim=-1)).square().sum(-1).argmin(-1)


def text_tokenizer() -> PreTrainedTokenizerFast:
    """Characters, with T5's ids of padding and end."""
    vocabulary = {name: index for index, name in enumerate(["<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def save_text_encoder(folder: Path) -> Path:
    torch.manual_seed(2)
    config = T5Config(
        vocab_size=32, d_model=FEATURES, d_kv=8, d_ff=24, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
        pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    encoder = T5EncoderModel(config).double()
    for parameter in encoder.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    encoder.save_pretrained(folder)
    text_tokenizer().save_pretrained(folder)
    return folder


def save_checkpoints(folder: Path) -> dict[str, Path]:
    """What the authors publish, by the names of ``convert_llamagen``'s arguments."""
    arguments = argparse.Namespace(image_size=2 * SIDE)
    torch.save({"model": gpt_state(), "steps": 1, "args": arguments}, folder / "gpt.pt")
    torch.save({"model": vq_state(), "args": arguments}, folder / "vq.pt")
    return {"gpt": folder / "gpt.pt", "vq": folder / "vq.pt", "text_encoder": save_text_encoder(folder / "t5")}


class Published:
    """The published model's way from prompts to tokens, with the text encoder at ``folder``."""

    def __init__(self, folder: Path):
        self.state = gpt_state()
        self.text = PreTrainedTokenizerFast.from_pretrained(folder)
        self.encoder = T5EncoderModel.from_pretrained(folder, dtype=torch.float64).eval()

    @torch.no_grad()
    def features(self, captions: list[str]) -> tuple[torch.Tensor, list[int]]:
        """Features ``[B, PREFIX, FEATURES]`` padded on the left with zeros, and how many of each are real."""
        made = self.text(captions, padding="max_length", max_length=PREFIX, truncation=True, return_tensors="pt")
        features, valid = (
            self.encoder(made["input_ids"], attention_mask=made["attention_mask"]).last_hidden_state,
            made["attention_mask"].sum(1).tolist(),
        )
        rolled = [torch.cat([0 * row[count:], row[:count]]) for row, count in zip(features, valid, strict=True)]
        return torch.stack(rolled), valid

    def generate(self, captions, guidance_scale, choose):
        """Tokens ``[B, SIDE²]``; ``choose`` takes guided logits ``[B, CODES]`` to ids."""
        features, valid = self.features(captions)
        tokens: list[list[int]] = [[] for _ in captions]
        for _ in range(SIDE**2):
            scores = []
            for caption, count, row in zip(features, valid, tokens, strict=True):
                cond = gpt_logits(self.state, caption, count, row)[-1]
                uncond = gpt_logits(self.state, self.state["cls_embedding.uncond_embedding"], count, row)[-1]
                scores.append(uncond + (cond - uncond) * guidance_scale)
            for row, chosen in zip(tokens, choose(torch.stack(scores)).tolist(), strict=True):
                row.append(chosen)
        return torch.tensor(tokens)
