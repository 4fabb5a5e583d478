"""`VisLlama`: an image becomes a few input vectors between two learned markers, and LLaMA continues after them.

All other code goes through this class and does not call its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, nullcontext
from inspect import signature
from typing import Any, Literal, NamedTuple, Protocol, cast

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel

from visllama.model.contracts import check_language_model, try_module
from visllama.model.language_model import LanguageModelSource, forget_decoding, input_embeddings, norm_in_double
from visllama.model.lora import adapters, as_in, attach_lora, is_adapter, merge_lora
from visllama.model.loss import TokenLoss, token_loss_sum
from visllama.model.vision_encoder import VisionEncoder

PARTS = ("vision_encoder", "connector", "markers", "language_model")
ADAPTER = "adapter"
"""The name of LoRA's tensors as a part; they lie inside the language model."""

_GENERATE_PARAMETERS = signature(GenerationMixin.prepare_inputs_for_generation).parameters
_CACHE = "cache" if "cache" in _GENERATE_PARAMETERS else "past_key_values"
"""The name of `generate`'s argument for a cache: "cache" since transformers 5.24, "past_key_values" before."""


def part_of(name: str) -> str:
    """Return the name of the part that a parameter or buffer of a `VisLlama` belongs to.

    Args:
        name: Name of the tensor in the `VisLlama`.
    """
    return ADAPTER if is_adapter(name) else name.split(".")[0]


def persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Return the buffers in a module's `state_dict`, by name; all other buffers are computed and never stored."""
    stored = module.state_dict(keep_vars=True).keys()
    return {name: buffer for name, buffer in module.named_buffers() if name in stored}


def trained_buffers(model: VisLlama) -> dict[str, Tensor]:
    """Return the persistent buffers of the parts that learn, by name, as BatchNorm's statistics or a counter."""
    buffers = {}
    for part in model.trainable:
        # The markers are a tensor, and the adapter lies in the language model: neither has buffers.
        module = getattr(model, part, None)
        if not isinstance(module, nn.Module):
            continue

        for name, buffer in persistent_buffers(module).items():
            buffers[f"{part}.{name}"] = buffer
    return buffers


def part_dtype(model: VisLlama, part: str, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the encoder's or the language model's weights.

    Args:
        model: The model, which knows what learns.
        part: "vision_encoder" or "language_model".
        dtype: Dtype of frozen weights; what trains is fp32 at least.
    """
    if part in model.trainable:
        return torch.promote_types(dtype, torch.float32)
    return dtype


class VisLlamaOutput(NamedTuple):
    logits: Float[Tensor, "B T V"]
    loss_sum: Float[Tensor, ""] | None
    """The loss summed over the supervised tokens: cross-entropy in nats, or the `token_loss`; None without labels."""


class _ReadsFeatures(Protocol):
    """A connector or its class, by the kind of features that it reads."""

    consumes: Literal["pooled", "patch"]


class VisLlama(nn.Module):
    """A frozen vision encoder, a trained connector and two trained markers, and a frozen language model.

    The model is built from configs alone, with encoder and language model on the meta device; `load_base_weights` fills
    them.

    Args:
        vision_encoder: Module that maps images to features.
        connector: Class of the connector, or a `partial` of it that may name K; it is called with `vision_dim` and
            `language_dim`.
        language_model: Source that builds and loads the language model.
        trainable: Names of the parts that learn, out of `PARTS` and "adapter"; all others are frozen.
        lora: Arguments of PEFT's `LoraConfig`; None for no adapter.

    Attributes:
        token_loss: The loss of each supervised token; None is the cross-entropy.
        trainable: Names of the parts that learn.
        lora: Arguments of PEFT's `LoraConfig`; None where there is no adapter or it was merged.
        language_model_source: Source that builds and loads the language model.
    """

    def __init__(
        self,
        vision_encoder: VisionEncoder,
        connector: Callable[..., nn.Module],
        language_model: LanguageModelSource,
        trainable: Iterable[str] = ("connector", "markers"),
        lora: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.language_model_source = language_model
        self.trainable = tuple(trainable)
        self.lora = lora
        self.token_loss: TokenLoss | None = None

        # The order of the parts is that of the optimizer's parameters and of checkpoints: keep it.
        self.vision_encoder = vision_encoder
        meta_model = language_model.build()
        check_language_model(meta_model, language_model)
        self.language_model = self._with_lora(meta_model)
        self.tokenizer = language_model.tokenizer

        language_dim = input_embeddings(self.language_model).embedding_dim
        connector_class = getattr(connector, "func", connector)
        vision_dim = getattr(vision_encoder, f"{_consumes(connector_class)}_dim")
        self.connector = _build_connector(connector, vision_dim, language_dim)
        self.markers = nn.Parameter(torch.zeros(2, language_dim))

        self._unreached: frozenset[str] = frozenset()
        if "vision_encoder" in self.trainable:
            self._unreached = self._find_unreached()
        self.num_image_tokens = self._count_image_tokens(connector, language_dim)

        # This also puts back the mode of the modules that ran in eval mode above.
        self._freeze()

    @property
    def num_positions(self) -> int | None:
        """Greatest number of positions that the language model was made for; None where its config names none."""
        return getattr(self.language_model.config.get_text_config(), "max_position_embeddings", None)

    @torch.no_grad()
    def _count_image_tokens(self, make_connector: Callable[..., nn.Module], language_dim: int) -> int:
        """Return K, the number of vectors that the connector makes of one image.

        The connector runs once on zeros, so that one that does not fit is found before any weight is loaded.

        Raises:
            ValueError: If its output is not `(1, K, D)`, or K is not what the config names.
        """
        encoder = self.vision_encoder
        feature_shapes = {
            "pooled": (encoder.pooled_dim,),
            "patch": (encoder.num_patches, encoder.patch_dim),
        }
        feature_shape = feature_shapes[_consumes(self.connector)]
        device = next(self.connector.parameters(), self.markers).device
        features = torch.zeros(1, *feature_shape, device=device)
        shape = tuple(try_module(self.connector, features).shape)

        configured = getattr(make_connector, "keywords", {}).get("num_image_tokens")
        is_one_image = len(shape) == 3 and shape[0] == 1
        fits = is_one_image and shape[1] > 0 and shape[2] == language_dim
        if not fits or configured not in (None, shape[1]):
            needed = "K" if configured is None else configured
            raise ValueError(
                f"num_image_tokens={configured} does not fit: of one image {type(self.connector).__name__} makes "
                f"{shape}, and (1, {needed}, {language_dim}) is needed"
            )

        # Extra state may be any object, which a safetensors file cannot hold.
        for name in self.connector.state_dict():
            if name.endswith("_extra_state"):
                raise ValueError(f"{name}: weights hold parameters and buffers alone: register it as a buffer")
        return shape[1]

    def _find_unreached(self) -> frozenset[str]:
        """Return the names of the encoder's tensors that the features do not depend on, as those of CLIP's last layer.

        They cannot learn, and ranks would wait for their gradients.
        """
        parameter_of = dict(self.vision_encoder.named_parameters(prefix="vision_encoder"))
        parameters = tuple(parameter_of.values())

        size = self.vision_encoder.transform.size_px
        image = parameters[0].new_zeros(1, 3, size, size)
        features = getattr(try_module(self.vision_encoder, image), _consumes(self.connector))
        gradients = torch.autograd.grad(features.sum(), parameters, allow_unused=True)
        return frozenset(name for name, gradient in zip(parameter_of, gradients, strict=True) if gradient is None)

    def _with_lora(self, language_model: PreTrainedModel) -> PreTrainedModel:
        if self.lora is None:
            return language_model
        return attach_lora(language_model, self.lora)

    def _freeze(self) -> None:
        """Set which tensors get gradients, and which parts are in training mode."""
        for name, parameter in self.named_parameters():
            learns = part_of(name) in self.trainable and name not in self._unreached
            parameter.requires_grad_(learns)
        self.train(self.training)

    def load_base_weights(self, dtype: torch.dtype = torch.float32, as_stored: bool = False) -> VisLlama:
        """Load the published weights of encoder and language model, and return the model.

        A part that trains is fp32 at least. In fp64 the whole model is in fp64, the trained parts and the buffers too.
        Both markers start at the mean of the language model's embeddings, where its inputs usually lie.

        Args:
            dtype: Dtype of the frozen weights.
            as_stored: Whether to leave the weights in the dtype of their files, which stay mapped and take no memory.
                The markers start at the values that `dtype` makes of the embeddings.
        """
        vision_dtype = part_dtype(self, "vision_encoder", dtype)
        language_dtype = part_dtype(self, "language_model", dtype)
        self.vision_encoder.load_base_weights("auto" if as_stored else vision_dtype)
        loaded = self.language_model_source.load("auto" if as_stored else language_dtype)
        forget_decoding(loaded, self.tokenizer)
        if dtype == torch.float64:
            norm_in_double(loaded)

        # DoRA computes its magnitudes from the weights, so there they cannot be replaced by stand-ins.
        uses_dora = self.lora is not None and self.lora.get("use_dora")
        stands_in = as_stored and not uses_dora
        with as_in(loaded, language_dtype) if stands_in else nullcontext():
            self.language_model = self._with_lora(loaded)

        # Some models (Gemma 3) scale their embeddings, so the module is called instead of reading its weight.
        embeddings = input_embeddings(self.language_model)
        with torch.no_grad():
            all_ids = torch.arange(embeddings.num_embeddings, device=embeddings.weight.device)
            all_embeddings = embeddings(all_ids).to(language_dtype)
            mean = all_embeddings.mean(0, dtype=torch.float32)
            self.markers.copy_(mean.expand(2, -1))

        if dtype == torch.float64 and not as_stored:
            self.double()
        self._freeze()
        return self

    def train(self, mode: bool = True) -> VisLlama:
        """Set training mode, and return the model; frozen parts stay in eval mode."""
        super().train(mode)
        for name in set(PARTS) - {*self.trainable, "markers"}:
            getattr(self, name).eval()

        # An adapter lies in the frozen language model but has a dropout of its own.
        for _, adapter in adapters(self.language_model):
            assert isinstance(adapter, nn.Module)
            adapter.train(mode and ADAPTER in self.trainable)
        return self

    def merge_adapter(self) -> VisLlama:
        """Add the adapter to the language model's weights in place, and return the model.

        It answers the same in less time, and the adapter cannot be trained any more.
        """
        merge_lora(self.language_model)
        self.lora = None
        return self

    def encode_images(self, pixel_values: Num[Tensor, "N C H W"]) -> Float[Tensor, "N K D"]:
        """Return the image embeds, which the connector makes of the encoder's features.

        Args:
            pixel_values: Images, uint8 or already normalised.
        """
        # A frozen encoder keeps no activations for a backward pass.
        encoder_learns = torch.is_grad_enabled() and "vision_encoder" in self.trainable
        with torch.set_grad_enabled(encoder_learns):
            features = getattr(self.vision_encoder(pixel_values), _consumes(self.connector))

        connector_dtype = next(self.connector.parameters()).dtype
        return self.connector(features.to(connector_dtype))

    def embed(
        self,
        input_ids: Int[Tensor, "B T"],
        pixel_values: Num[Tensor, "N C H W"],
        image_of_span: Int[Tensor, " S"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Return the text's embeddings, with `[boi] image_embeds [eoi]` where the image spans stand.

        Args:
            input_ids: Token ids; image spans as in `visllama.text.tokens`.
            pixel_values: Images, uint8 or already normalised.
            image_of_span: The number of the image that each span shows, in reading order, where several show the same
                one; None fills the spans with the images in their order.
        """
        with self._without_statistics(input_ids, pixel_values):
            image_embeds = self.encode_images(pixel_values)
        if image_of_span is not None:
            image_embeds = image_embeds[image_of_span]
        return self.splice(input_ids, image_embeds)

    def splice(self, input_ids: Int[Tensor, "B T"], image_embeds: Float[Tensor, "N K D"]) -> Float[Tensor, "B T D"]:
        """Return the text's embeddings, with `[boi] image_embeds [eoi]` where the image spans stand.

        Images fill the spans in reading order. Images beyond the last span (the dummy of a batch without images) take
        part with weight zero.

        Args:
            input_ids: Token ids; image spans as in `visllama.text.tokens`.
            image_embeds: Image embeds, as `encode_images` returns them.
        """
        markers = self.markers.expand(len(image_embeds), 2, -1)
        boi, eoi = markers.unsqueeze(2).unbind(1)
        spans = torch.cat([boi, image_embeds, eoi], dim=1)

        # The ids of an image span are negative: they stand for no row of the embeddings, and are overwritten.
        embed_tokens = input_embeddings(self.language_model)
        text = embed_tokens(input_ids.clamp(min=0))
        is_image = (input_ids < 0).unsqueeze(-1)
        return text.masked_scatter(is_image, spans.to(text.dtype))

    @contextmanager
    def _without_statistics(
        self, input_ids: Int[Tensor, "B T"], pixel_values: Num[Tensor, "N C H W"]
    ) -> Generator[None, None, None]:
        """Set a connector with buffers to eval mode on a dummy image.

        Its statistics and counters are then of real images alone.
        """
        has_buffers = next(self.connector.buffers(), None) is not None
        may_be_dummy = self.connector.training and has_buffers and len(pixel_values) == 1

        # Reading the ids has to wait for the GPU, so it comes last, and only for a batch with a single image.
        if not may_be_dummy or bool((input_ids < 0).any()):
            yield
            return

        self.connector.eval()
        try:
            yield
        finally:
            self.connector.train()

    def forward(
        self,
        input_ids: Int[Tensor, "B T"],
        pixel_values: Num[Tensor, "N C H W"],
        attention_mask: Int[Tensor, "B T"] | None = None,
        labels: Int[Tensor, "B T"] | None = None,
    ) -> VisLlamaOutput:
        """Return next-token logits, and with labels their summed loss.

        Args:
            input_ids: Token ids; image spans as in `visllama.text.tokens`, as many as there are images.
            pixel_values: Images, uint8 or already normalised.
            attention_mask: 0 on padding. Right-padded batches need none: a causal model never looks right.
            labels: `input_ids` where supervised, IGNORE_INDEX elsewhere; not shifted.
        """
        inputs_embeds = self.embed(input_ids, pixel_values)
        logits = self.language_model(inputs_embeds=inputs_embeds, attention_mask=attention_mask, use_cache=False).logits
        return VisLlamaOutput(logits, None if labels is None else token_loss_sum(logits, labels, self.token_loss))

    def new_cache(self) -> Cache:
        """Return an empty cache for `generate`, which will hold the keys and values of the tokens read and written."""
        return DynamicCache(config=self.language_model.config.get_text_config(decoder=True))

    @torch.no_grad()
    def generate(
        self,
        input_ids: Int[Tensor, "B T"],
        pixel_values: Num[Tensor, "N C H W"],
        attention_mask: Int[Tensor, "B T"],
        cache: Cache | None = None,
        image_of_span: Int[Tensor, " S"] | None = None,
        **decoding: Any,
    ) -> Int[Tensor, "B L"]:
        """Return the new tokens that the model writes after left-padded inputs.

        Args:
            input_ids: Token ids to continue; with a cache, those after the tokens that it holds.
            pixel_values: Images of the spans in `input_ids`.
            attention_mask: 0 on padding.
            cache: Keys and values of one unpadded row that was read before. It grows by `input_ids` and all new tokens
                but the last.
            image_of_span: The number of the image that each span shows, as for `embed`; several rows may ask about one
                image, which is then encoded once.
            decoding: Further arguments of transformers' `generate`.
        """
        inputs_embeds = self.embed(input_ids, pixel_values, image_of_span)
        return self.write_on(inputs_embeds, attention_mask, cache, **decoding)

    @torch.no_grad()
    def write_on(
        self,
        inputs_embeds: Float[Tensor, "B T D"],
        attention_mask: Int[Tensor, "B T"],
        cache: Cache | None = None,
        **decoding: Any,
    ) -> Int[Tensor, "B L"]:
        """Return the new tokens that the model writes after embeddings.

        Args:
            inputs_embeds: Embeddings, as `embed` or `splice` returns them, left-padded.
            attention_mask: 0 on padding.
            cache: Keys and values of one unpadded row that was read before, as for `generate`.
            decoding: Further arguments of transformers' `generate`.
        """
        if cache is not None:
            # transformers takes the inputs from the start and cuts off as many as the cache holds. Only the length of
            # that part counts, so zeros stand in for it.
            num_cached = cache.get_seq_length()
            inputs_embeds = F.pad(inputs_embeds, (0, 0, num_cached, 0))
            attention_mask = F.pad(attention_mask, (num_cached, 0), value=1)
            decoding[_CACHE] = cache

        # A causal language model of transformers has `generate` from this class.
        language_model = cast(GenerationMixin, self.language_model)
        return language_model.generate(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            **decoding,
        )


def _consumes(connector: object) -> Literal["pooled", "patch"]:
    """Return the kind of features that a connector, or a class of connectors, reads."""
    return cast(_ReadsFeatures, connector).consumes


def _build_connector(connector: Callable[..., nn.Module], vision_dim: int, language_dim: int) -> nn.Module:
    """Return the connector, built on the device of the context.

    A connector whose constructor computes with numbers cannot be built on the meta device, and is built on the CPU.
    """
    try:
        return connector(vision_dim=vision_dim, language_dim=language_dim)
    except RuntimeError as error:
        if "meta" not in str(error):
            raise
        with torch.device("cpu"):
            return connector(vision_dim=vision_dim, language_dim=language_dim)
