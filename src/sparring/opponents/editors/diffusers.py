"""Flow editors of the package diffusers, taken apart: encode once, ask for the velocity, decode.

diffusers' pipelines run as a whole and without gradient. Here their parts (text encoders, VAE, transformer, schedule)
are called one by one, so that the transformer's forward can be repeated with gradient on states that were kept. What
each part is given is what the pipeline gives it; tests compare whole edits with the pipelines' own.

Supported are ``QwenImageEditPipeline`` and ``FluxKontextPipeline`` (diffusers 0.42.1 was read and tested).

Letters: ``N`` pictures of a batch, ``U`` distinct pairs of picture and prompt among them, ``L`` latent tokens of a
picture, ``C`` numbers per token.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sparring.errors import UserError
from sparring.models.peft import adapter_settings, adapter_weights, load_adapter_weights

ADAPTER_FILE = "pytorch_lora_weights.safetensors"
NO_PROMPT = " "
"""The prompt of Qwen's unguided pass, as on its model card."""

_ATTENTION = (
    *(f"attn.to_{part}" for part in ("q", "k", "v", "out.0", "add_out")),
    *(f"attn.add_{part}_proj" for part in ("q", "k", "v")),
)


@dataclass(frozen=True, eq=False)
class Condition:
    """What a batch of edits is conditioned on, encoded once."""

    height: int
    """Of the pictures as edited, in pixels."""
    width: int
    tensors: Mapping[str, Tensor]
    """Each (U, ...): the encoded pictures and prompts."""
    row_N: Tensor
    """int64 (N,): which of them an edit belongs to."""

    def of(self, is_chosen_N: Tensor) -> Condition:
        """That of some of the edits. bool (N,)."""
        return Condition(self.height, self.width, self.tensors, self.row_N[is_chosen_N])

    def __getitem__(self, name: str) -> Tensor:
        """One tensor with a row for every edit, (N, ...)."""
        return self.tensors[name][self.row_N]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors


class FlowEditor(ABC):
    """The parts of a pipeline. Adapters are put on the layers named in ``targets``."""

    family: str
    """Its key in ``flow_grpo.OFFICIAL``."""
    targets: tuple[str, ...]

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self.transformer: torch.nn.Module = pipeline.transformer
        # Read before adapters bring weights of another precision.
        self.dtype: torch.dtype = pipeline.transformer.dtype
        self.multiple = 2 * pipeline.vae_scale_factor

    @property
    def device(self) -> torch.device:
        return next(self.transformer.parameters()).device

    def edit_size(self, height: int, width: int, resolution: int) -> tuple[int, int]:
        """Height and width at which a picture is edited: an area of about resolution², its proportions, whole patches.

        Ours: the official trainers make every picture a square, the pipelines have one megapixel.
        """
        scale = resolution / (height * width) ** 0.5
        rows, columns = (max(1, round(size * scale / self.multiple)) for size in (height, width))
        return rows * self.multiple, columns * self.multiple

    def times(self, num_steps: int, num_tokens: int) -> list[float]:
        """The num_steps + 1 times from 1 to 0 at which the pipeline would denoise num_tokens latent tokens."""
        from diffusers import FlowMatchEulerDiscreteScheduler
        from diffusers.pipelines.flux.pipeline_flux_kontext import calculate_shift

        # A copy, for setting steps changes a scheduler.
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(self.pipeline.scheduler.config)
        config = scheduler.config
        mu = calculate_shift(
            num_tokens,
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / num_steps, num_steps), mu=mu)
        return scheduler.sigmas.tolist()

    def noise(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        """First states, float32 (N, L, C), each from its own generator, drawn as the pipeline draws them."""
        channels = self.pipeline.transformer.config.in_channels // 4
        return self.pipeline.prepare_latents(
            None, len(generators), channels, height, width, torch.float32, self.device, list(generators)
        )[0]

    @torch.no_grad()
    def encode(
        self, pictures: Sequence[Tensor], prompts: Sequence[str], height: int, width: int, *, is_guided: bool
    ) -> Condition:
        """Encode pictures, uint8 (3, H, W), and prompts; a picture with a prompt met before is not encoded again."""
        rows: dict[tuple[int, str], int] = {}
        encoded: list[dict[str, Tensor]] = []
        row_N = []
        for picture, prompt in zip(pictures, prompts, strict=True):
            row = rows.setdefault((id(picture), prompt), len(rows))
            if row == len(encoded):
                encoded.append(self._encode_one(_to_pil(picture), prompt, height, width, is_guided))
            row_N.append(row)
        tensors = {name: _stack([one[name] for one in encoded]) for name in encoded[0]}
        return Condition(height, width, tensors, torch.tensor(row_N, device=self.device))

    def _prepare(self, picture: Image.Image, height: int, width: int) -> tuple[Image.Image, Tensor]:
        """The picture at the size of the edit, and in [-1, 1] for the VAE, (1, 3, height, width)."""
        processor = self.pipeline.image_processor
        resized = processor.resize(picture, height, width)
        return resized, processor.preprocess(resized, height, width)

    def _encode_vae(self, pixels: Tensor, height: int, width: int) -> tuple[Any, ...]:
        """What the pipeline makes of a picture beside (unused) noise."""
        channels = self.pipeline.transformer.config.in_channels // 4
        unused = torch.zeros(1)
        return self.pipeline.prepare_latents(
            pixels, 1, channels, height, width, self.dtype, self.device, None, latents=unused
        )[1:]

    def save_adapters(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write ``pytorch_lora_weights.safetensors``, which ``load_lora_weights`` of the plain pipeline reads, too.

        Args:
            weights: by the adapters' names; None for those that they have.
        """
        saved = adapter_weights(self.transformer) if weights is None else weights
        self.pipeline.save_lora_weights(
            folder,
            transformer_lora_layers={name: weight.detach().contiguous() for name, weight in saved.items()},
            transformer_lora_adapter_metadata=adapter_settings(self.transformer),
        )

    def load_adapters(self, folder: Path) -> None:
        """Read what :meth:`save_adapters` wrote. UserError if it is missing or of other settings."""
        if not (folder / ADAPTER_FILE).is_file():
            raise UserError(f"{folder} has no {ADAPTER_FILE}: give a folder that an editor was saved to")
        weights, metadata = self.pipeline.lora_state_dict(folder, return_lora_metadata=True)
        prefix = f"{self.pipeline.transformer_name}."
        saved, own = (metadata or {}).get(f"{prefix}lora_alpha"), adapter_settings(self.transformer)["lora_alpha"]
        if saved != own:
            raise UserError(f"the adapters in {folder} have lora_alpha {saved}, not {own}: set lora_alpha to it")
        try:
            load_adapter_weights(self.transformer, {k.removeprefix(prefix): value for k, value in weights.items()})
        except ValueError as error:
            raise UserError(f"the adapters in {folder} do not fit this editor: {error}") from error

    @abstractmethod
    def _encode_one(
        self, picture: Image.Image, prompt: str, height: int, width: int, is_guided: bool
    ) -> dict[str, Tensor]:
        """Named tensors, each (1, ...)."""

    @abstractmethod
    def velocity(self, x_NLC: Tensor, t: float, condition: Condition, guidance: float) -> Tensor:
        """v(x, t), float32 (N, L, C), with gradient if it is enabled."""

    @abstractmethod
    def decode(self, x_NLC: Tensor, height: int, width: int) -> Tensor:
        """Pictures of states at time 0, float32 (N, 3, height, width) in [0, 1] or not finite."""

    def _time_N(self, t: float, num: int) -> Tensor:
        # Rounded before it is divided, as the pipelines do.
        return torch.full((num,), t * 1000, dtype=self.dtype, device=self.device) / 1000

    @staticmethod
    def _in_unit_range(decoded_N3HW: Tensor) -> Tensor:
        return (decoded_N3HW.float() / 2 + 0.5).clamp(0, 1)


class FluxKontext(FlowEditor):
    """FLUX.1-Kontext: the source picture's latents follow those of the edit; guidance is a number that it reads."""

    family = "flux-kontext"
    # As in scripts/train_flux_kontext.py of the official code.
    targets = (*_ATTENTION, "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp")
    max_text_tokens = 512
    """A prompt's tokens, padded or cut to this number; the pipeline's. The official trainer takes 128."""

    def _encode_one(
        self, picture: Image.Image, prompt: str, height: int, width: int, is_guided: bool
    ) -> dict[str, Tensor]:
        _, pixels = self._prepare(picture, height, width)
        text, pooled, text_ids = self.pipeline.encode_prompt(
            prompt=[prompt], prompt_2=None, device=self.device, max_sequence_length=self.max_text_tokens
        )
        source, state_ids, source_ids = self._encode_vae(pixels, height, width)
        ids = torch.cat([state_ids, source_ids])
        return {
            "text": text.to(self.dtype),
            "pooled": pooled.to(self.dtype),
            "text_ids": text_ids[None],
            "source": source,
            "ids": ids[None],
        }

    def velocity(self, x_NLC: Tensor, t: float, condition: Condition, guidance: float) -> Tensor:
        num, num_tokens = x_NLC.shape[:2]
        guidance_N = None
        if self.pipeline.transformer.config.guidance_embeds:
            guidance_N = torch.full((num,), guidance, dtype=torch.float32, device=self.device)
        predicted = self.transformer(
            hidden_states=torch.cat([x_NLC.to(self.dtype), condition["source"]], dim=1),
            timestep=self._time_N(t, num),
            guidance=guidance_N,
            pooled_projections=condition["pooled"],
            encoder_hidden_states=condition["text"],
            # Positions are the same for all edits of one size.
            txt_ids=condition.tensors["text_ids"][0],
            img_ids=condition.tensors["ids"][0],
            joint_attention_kwargs={},
            return_dict=False,
        )[0]
        return predicted[:, :num_tokens].float()

    @torch.no_grad()
    def decode(self, x_NLC: Tensor, height: int, width: int) -> Tensor:
        vae = self.pipeline.vae
        latents = self.pipeline._unpack_latents(x_NLC.to(vae.dtype), height, width, self.pipeline.vae_scale_factor)
        latents = latents / vae.config.scaling_factor + vae.config.shift_factor
        return self._in_unit_range(vae.decode(latents, return_dict=False)[0])


class QwenImageEdit(FlowEditor):
    """Qwen-Image-Edit: the source picture is read by the language model too; guidance takes a second pass."""

    family = "qwen-image-edit"
    # Attention and both MLPs, as in the official code for Qwen-Image and its editors.
    targets = (*_ATTENTION, *(f"{stream}_mlp.net.{part}" for stream in ("img", "txt") for part in ("0.proj", "2")))

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        if pipeline.transformer.config.guidance_embeds:
            raise UserError("a guidance-distilled Qwen-Image transformer is not supported: take Qwen/Qwen-Image-Edit")

    def _encode_one(
        self, picture: Image.Image, prompt: str, height: int, width: int, is_guided: bool
    ) -> dict[str, Tensor]:
        resized, pixels = self._prepare(picture, height, width)
        (source,) = self._encode_vae(pixels.unsqueeze(2), height, width)
        encoded = {"source": source}
        for name, text in (("text", prompt), ("no_text", NO_PROMPT))[: 2 if is_guided else 1]:
            embedded, mask = self.pipeline.encode_prompt(prompt=[text], image=resized, device=self.device)
            encoded[name] = embedded.to(self.dtype)
            encoded[f"{name}_mask"] = embedded.new_ones(embedded.shape[:2]).long() if mask is None else mask
        return encoded

    def velocity(self, x_NLC: Tensor, t: float, condition: Condition, guidance: float) -> Tensor:
        guided_NLC = self._forward(x_NLC, t, condition, "text")
        if "no_text" not in condition:
            return guided_NLC
        free_NLC = self._forward(x_NLC, t, condition, "no_text")
        combined_NLC = free_NLC + guidance * (guided_NLC - free_NLC)
        # Each token's length stays that of the guided one, as in the pipeline.
        return combined_NLC * (guided_NLC.norm(dim=-1, keepdim=True) / combined_NLC.norm(dim=-1, keepdim=True))

    def _forward(self, x_NLC: Tensor, t: float, condition: Condition, text: str) -> Tensor:
        num, num_tokens = x_NLC.shape[:2]
        height, width = condition.height // self.multiple, condition.width // self.multiple
        mask = condition[f"{text}_mask"]
        predicted = self.transformer(
            hidden_states=torch.cat([x_NLC.to(self.dtype), condition["source"]], dim=1),
            timestep=self._time_N(t, num),
            encoder_hidden_states=condition[text],
            encoder_hidden_states_mask=None if bool(mask.all()) else mask,
            img_shapes=[[(1, height, width)] * 2] * num,
            attention_kwargs={},
            return_dict=False,
        )[0]
        return predicted[:, :num_tokens].float()

    @torch.no_grad()
    def decode(self, x_NLC: Tensor, height: int, width: int) -> Tensor:
        vae = self.pipeline.vae
        latents = self.pipeline._unpack_latents(x_NLC.to(vae.dtype), height, width, self.pipeline.vae_scale_factor)
        mean, std = (
            torch.tensor(values, device=latents.device, dtype=latents.dtype).view(1, -1, 1, 1, 1)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        return self._in_unit_range(vae.decode(latents * std + mean, return_dict=False)[0][:, :, 0])


_EDITORS: dict[str, type[FlowEditor]] = {
    "QwenImageEditPipeline": QwenImageEdit,
    "FluxKontextPipeline": FluxKontext,
}


def editor_of(pipeline: object) -> FlowEditor:
    """Take a loaded pipeline apart. UserError for any but the two classes supported, subclasses included."""
    return _supported(type(pipeline).__name__)(pipeline)


def _supported(name: str) -> type[FlowEditor]:
    """The editor of a class of pipelines, by its name."""
    if name in _EDITORS:
        return _EDITORS[name]
    supported = " or ".join(_EDITORS)
    if "InstructPix2Pix" in name:
        raise UserError(f"{name} predicts noise and is no flow, so Flow-GRPO does not apply to it: load {supported}")
    raise UserError(f"{name} is not supported as an editor: load {supported}")


def family_of(path: str) -> str:
    """The family of a pipeline, a folder or a name on the hub, of which only ``model_index.json`` is read.

    Raises UserError if diffusers is not installed, if there is no pipeline, or if it is of a class not supported.
    """
    return _supported(_class_of(path)).family


def pipeline_folder(path: str) -> Path:
    """The folder that a pipeline lies in: ``path`` itself, or that of a name on the hub, downloaded unless it is there.

    Only safetensors are downloaded and no code is. UserError if that fails, or for a pipeline not supported.
    """
    _supported(_class_of(path))
    if Path(path).is_dir():
        return Path(path)
    from diffusers import DiffusionPipeline

    try:
        return Path(DiffusionPipeline.download(path, use_safetensors=True))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be downloaded: {_one_line(error)}") from error


def load_pipeline(path: str, *, dtype: torch.dtype, device: torch.device) -> Any:
    """A pipeline of a supported class, on a device. Only safetensors are read, and no code of a folder is run.

    Args:
        path: its folder, or its name on the hub.
        dtype: of all weights.

    Raises UserError if it cannot be loaded or is of a class not supported.
    """
    import diffusers

    # Bars, and a warning for every prompt that CLIP reads in part, would lie across the progress of a run.
    diffusers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    folder = pipeline_folder(path)
    pipeline_class = getattr(diffusers, _class_of(str(folder)))
    try:
        return pipeline_class.from_pretrained(folder, dtype=dtype, use_safetensors=True).to(device)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be loaded: {_one_line(error)}") from error


def _class_of(path: str) -> str:
    """The name of a pipeline's class."""
    try:
        from diffusers import DiffusionPipeline
    except ModuleNotFoundError as error:
        raise UserError(f"an editor needs more packages ({error}): pip install 'sparring[diffusion]'") from error
    try:
        return str(DiffusionPipeline.load_config(path)["_class_name"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} is no pipeline of diffusers: give a folder with model_index.json, or a name on the hub such as "
            f"Qwen/Qwen-Image-Edit ({_one_line(error)})"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _to_pil(picture: Tensor) -> Image.Image:
    return Image.fromarray(picture.permute(1, 2, 0).cpu().numpy())


def _stack(parts: Sequence[Tensor]) -> Tensor:
    """Rows (1, length, ...) as one tensor (U, longest, ...), shorter ones padded with zeros at the end."""
    longest = max(part.shape[1] for part in parts)
    padded = []
    for part in parts:
        filled = part.new_zeros(1, longest, *part.shape[2:])
        filled[:, : part.shape[1]] = part
        padded.append(filled)
    return torch.cat(padded)
