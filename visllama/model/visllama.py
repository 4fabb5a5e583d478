"""`VisLlama`: an image becomes a few input vectors between two learned markers, and LLaMA writes on after them.

This class is the one door: nobody calls its parts from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from inspect import signature
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel

from visllama.model.contracts import check_language_model, try_module
from visllama.model.language_model import LanguageModelSource, forget_decoding, norm_in_double
from visllama.model.lora import adapters, as_in, attach_lora, is_adapter, merge_lora
from visllama.model.loss import TokenLoss, token_loss_sum
from visllama.model.vision_encoder import VisionEncoder

PARTS = ("vision_encoder", "connector", "markers", "language_model")
ADAPTER = "adapter"
"""LoRA's tensors, which lie inside the language model."""
_KNOWN = signature(GenerationMixin.prepare_inputs_for_generation).parameters
_CACHE = "cache" if "cache" in _KNOWN else "past_key_values"
"""What `generate` calls it: since 5.24, or before."""


def part_of(name: str) -> str:
    """Return the part that a parameter or buffer of a `VisLlama` belongs to, by its name."""
    return ADAPTER if is_adapter(name) else name.split(".")[0]


def persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that are part of a module's state, by name; the others are computed, and never stored."""
    stored = module.state_dict(keep_vars=True).keys()
    return {name: buffer for name, buffer in module.named_buffers() if name in stored}


def trained_buffers(model: VisLlama) -> dict[str, Tensor]:
    """Return the persistent buffers of the parts that learn, by name: BatchNorm's statistics, a counter."""
    found = {}
    for part in model.trainable:
        module = getattr(model, part, None)
        if isinstance(module, nn.Module):  # the markers are a tensor, and the adapter lies in the language model
            found |= {f"{part}.{name}": buffer for name, buffer in persistent_buffers(module).items()}
    return found


def part_dtype(model: VisLlama, part: str, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the encoder's or the language model's weights, of which frozen ones are in `dtype`."""
    return torch.promote_types(dtype, torch.float32) if part in model.trainable else dtype


class VisLlamaOutput(NamedTuple):
    logits: Float[Tensor, "B T V"]
    loss_sum: Float[Tensor, ""] | None
    """The loss summed over the supervised tokens: cross-entropy in nats, or the `token_loss`; None without labels."""


class VisLlama(nn.Module):
    """A frozen vision encoder, a trained connector and two trained markers, a frozen language model.

    Args:
        vision_encoder: Images -> features.
        connector: Makes the connector when told `vision_dim` and `language_dim`; a `partial` may name its K.
        language_model: Where the language model comes from.
        trainable: Which of `PARTS` and the adapter learn; all others are frozen here, once.
        lora: Arguments of PEFT's `LoraConfig`; None is no adapter.

    Built from configs alone, encoder and language model on the meta device: `load_base_weights` fills them.

    Attributes:
        token_loss: The loss of each supervised token; None is the cross-entropy.
        trainable: Names of the parts that learn.
        lora: Arguments of PEFT's `LoraConfig`; None where there is no adapter, or it was merged.
        language_model_source: Where the language model comes from.
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
        self.language_model_source, self.trainable, self.lora = language_model, tuple(trainable), lora
        self.token_loss: TokenLoss | None = None
        self.vision_encoder = vision_encoder
        built = language_model.build()
        check_language_model(built, language_model)
        self.language_model = self._with_lora(built)
        self.tokenizer = language_model.tokenizer
        language_dim = self.language_model.get_input_embeddings().embedding_dim
        consumes = getattr(connector, "func", connector).consumes
        self.connector = _build_connector(connector, getattr(vision_encoder, f"{consumes}_dim"), language_dim)
        self.markers = nn.Parameter(torch.zeros(2, language_dim))
        self._unreached = self._find_unreached() if "vision_encoder" in self.trainable else frozenset()
        self.num_image_tokens = self._count_image_tokens(connector, language_dim)
        self._freeze()  # it also puts back the mode of what ran in eval mode here

    @property
    def num_positions(self) -> int | None:
        """Most positions that the language model was made for; None where it names no bound."""
        return getattr(self.language_model.config.get_text_config(), "max_position_embeddings", None)

    @torch.no_grad()
    def _count_image_tokens(self, make_connector: Callable[..., nn.Module], language_dim: int) -> int:
        """Return K, the number of vectors that the connector makes of one image.

        It is what one run on zeros makes, so that a connector that does not fit is found before any weight is loaded.

        Raises:
            ValueError: If that is no `(1, K, D)`, or not the K that the config names.
        """
        encoder = self.vision_encoder
        shape = {"pooled": (encoder.pooled_dim,), "patch": (encoder.num_patches, encoder.patch_dim)}
        device = next(self.connector.parameters(), self.markers).device
        features = torch.zeros(1, *shape[self.connector.consumes], device=device)
        found = tuple(try_module(self.connector, features).shape)

        configured = getattr(make_connector, "keywords", {}).get("num_image_tokens")
        wanted = "K" if configured is None else configured
        is_shaped = len(found) == 3 and found[0] == 1 and found[1] > 0 and found[2] == language_dim
        if not is_shaped or configured not in (None, found[1]):
            raise ValueError(
                f"num_image_tokens={configured} does not fit: of one image {type(self.connector).__name__} makes "
                f"{found}, and (1, {wanted}, {language_dim}) is needed"
            )
        for name in self.connector.state_dict():
            if name.endswith("_extra_state"):
                raise ValueError(f"{name}: weights hold parameters and buffers alone: register it as a buffer")
        return found[1]

    def _find_unreached(self) -> frozenset[str]:
        """Name the encoder's tensors that the features do not rest on (CLIP's last layer is behind its patch features).

        They cannot learn, and ranks would wait for their gradients.
        """
        names, parameters = zip(*self.vision_encoder.named_parameters(prefix="vision_encoder"), strict=True)
        size = self.vision_encoder.transform.size_px
        features = try_module(self.vision_encoder, parameters[0].new_zeros(1, 3, size, size))
        features = getattr(features, self.connector.consumes)
        gradients = torch.autograd.grad(features.sum(), parameters, allow_unused=True)
        return frozenset(name for name, gradient in zip(names, gradients, strict=True) if gradient is None)

    def _with_lora(self, language_model: PreTrainedModel) -> PreTrainedModel:
        return language_model if self.lora is None else attach_lora(language_model, self.lora)

    def _freeze(self) -> None:
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(part_of(name) in self.trainable and name not in self._unreached)
        self.train(self.training)

    def load_base_weights(self, dtype: torch.dtype = torch.float32, as_stored: bool = False) -> VisLlama:
        """Load the published weights of encoder and language model; one that trains is fp32 at least.

        Both markers start at the mean of the language model's embeddings, where its inputs are at home. In fp64 all of
        the model is, what trains and the buffers too.

        Args:
            dtype: Of the frozen weights.
            as_stored: Leave them in the dtype of their files, which stay mapped: no memory is filled. The markers
                start at what `dtype` makes of them.
        """
        of = {part: part_dtype(self, part, dtype) for part in ("vision_encoder", "language_model")}
        self.vision_encoder.load_base_weights("auto" if as_stored else of["vision_encoder"])
        loaded = self.language_model_source.load("auto" if as_stored else of["language_model"])
        forget_decoding(loaded, self.tokenizer)
        if dtype == torch.float64:
            norm_in_double(loaded)
        # (DoRA's magnitudes are the weights' own: they have to be there.)
        stands_in = as_stored and not (self.lora or {}).get("use_dora")
        with as_in(loaded, of["language_model"]) if stands_in else nullcontext():
            self.language_model = self._with_lora(loaded)
        embeddings = self.language_model.get_input_embeddings()
        with torch.no_grad():  # through the module: some (Gemma 3) scale their embeddings
            everything = embeddings(torch.arange(embeddings.num_embeddings, device=embeddings.weight.device))
            mean = everything.to(of["language_model"]).mean(0, dtype=torch.float32)
            self.markers.copy_(mean.expand(2, -1))
        if dtype == torch.float64 and not as_stored:
            self.double()
        self._freeze()
        return self

    def train(self, mode: bool = True) -> VisLlama:
        """Set training mode; frozen parts stay in eval mode."""
        super().train(mode)
        for name in set(PARTS) - {*self.trainable, "markers"}:
            getattr(self, name).eval()
        for _, adapter in adapters(self.language_model):  # its dropout is its own
            adapter.train(mode and ADAPTER in self.trainable)
        return self

    def merge_adapter(self) -> VisLlama:
        """Add the adapter to the language model's weights: the same answers, sooner. It cannot be trained after."""
        merge_lora(self.language_model)
        self.lora = None
        return self

    def encode_images(self, pixel_values: Num[Tensor, "N C H W"]) -> Float[Tensor, "N K D"]:
        """Return the image embeds: the frozen encoder looks, the connector translates."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and "vision_encoder" in self.trainable):
            features = getattr(self.vision_encoder(pixel_values), self.connector.consumes)
        return self.connector(features.to(next(self.connector.parameters()).dtype))

    def embed(
        self,
        input_ids: Int[Tensor, "B T"],
        pixel_values: Num[Tensor, "N C H W"],
        image_of_span: Int[Tensor, " S"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Embed the text, and put `[boi] image_embeds [eoi]` where the image spans stand.

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
        """Embed the text, and put given image embeds, each image's between the markers, where the image spans stand.

        Images fill the spans in reading order. Images beyond the last span (the dummy of a batch without images) take
        part with weight zero.
        """
        boi, eoi = self.markers.expand(len(image_embeds), 2, -1).unsqueeze(2).unbind(1)
        spans = torch.cat([boi, image_embeds, eoi], dim=1)
        text = self.language_model.get_input_embeddings()(input_ids.clamp(min=0))
        return text.masked_scatter((input_ids < 0).unsqueeze(-1), spans.to(text.dtype))

    @contextmanager
    def _without_statistics(
        self, input_ids: Int[Tensor, "B T"], pixel_values: Num[Tensor, "N C H W"]
    ) -> Iterator[None]:
        """Run a connector with buffers in eval mode on a dummy image: what it counts or averages is of images alone."""
        has_buffers = next(self.connector.buffers(), None) is not None
        # The last question has to wait for the GPU, so it is asked last, and only of a batch with a single image.
        is_dummy = (
            self.connector.training and has_buffers and len(pixel_values) == 1 and not bool((input_ids < 0).any())
        )
        if not is_dummy:
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
        """Return an empty cache for `generate`, for the keys and values of what was read and written."""
        return DynamicCache(config=self.language_model.config.get_text_config(decoder=True))

    @torch.no_grad()
    def generate(
        self,
        input_ids: Int[Tensor, "B T"],
        pixel_values: Num[Tensor, "N C H W"],
        attention_mask: Int[Tensor, "B T"],
        cache: Cache | None = None,
        image_of_span: Int[Tensor, " S"] | None = None,
        **decoding,
    ) -> Int[Tensor, "B L"]:
        """Write on after left-padded inputs and give the new tokens; `decoding` is of transformers' `generate`.

        Args:
            input_ids: What is read; with a cache, what stands behind that.
            pixel_values: Images of the spans in `input_ids`.
            attention_mask: 0 on padding.
            cache: What was read before, of one unpadded row. It grows by `input_ids` and all new tokens but the last.
            image_of_span: As `embed` takes it: several rows may ask about one image, which is then encoded once.
        """
        inputs_embeds = self.embed(input_ids, pixel_values, image_of_span)
        return self.write_on(inputs_embeds, attention_mask, cache, **decoding)

    @torch.no_grad()
    def write_on(
        self,
        inputs_embeds: Float[Tensor, "B T D"],
        attention_mask: Int[Tensor, "B T"],
        cache: Cache | None = None,
        **decoding,
    ) -> Int[Tensor, "B L"]:
        """Write on after what `embed` or `splice` made, and give the new tokens; see `generate`."""
        if cache is not None:
            # transformers wants all from the start, and cuts off as much as the cache holds: only the length counts.
            held = cache.get_seq_length()
            inputs_embeds = F.pad(inputs_embeds, (0, 0, held, 0))
            attention_mask = F.pad(attention_mask, (held, 0), value=1)
            decoding[_CACHE] = cache
        return self.language_model.generate(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **decoding)


def _build_connector(connector: Callable[..., nn.Module], vision_dim: int, language_dim: int) -> nn.Module:
    """Build the connector; one whose constructor needs numbers is built on the CPU where all else is without memory."""
    try:
        return connector(vision_dim=vision_dim, language_dim=language_dim)
    except (RuntimeError, NotImplementedError) as error:
        if "meta" not in str(error):
            raise
        with torch.device("cpu"):
            return connector(vision_dim=vision_dim, language_dim=language_dim)
